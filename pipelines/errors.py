"""What can go wrong between a store of frames and a published forecast.

PipelineError
├── ConfigError             the product file is wrong, or does not fit its store or model
├── InputError              the input cannot make this cycle
│   ├── NotYetError         a frame has not arrived (waiting may help)
│   ├── CorruptInputError   stored bytes are damaged or unreadable
│   └── RewrittenError      the store is another than it was when it was opened (starting again helps)
└── OutputError             the forecast could not be written
    ├── AlreadyPublishedError   this cycle stands already; nothing was changed
    └── IncompleteError         shards are missing or damaged; nothing was published
"""


class PipelineError(Exception):
    """Base of every error that pipelines raises on purpose."""


class ConfigError(PipelineError):
    """The product file is wrong, or does not fit its store or model."""


class InputError(PipelineError):
    """The input store cannot make this cycle."""


class NotYetError(InputError):
    """A frame that the cycle needs has not arrived."""


class CorruptInputError(InputError):
    """Stored bytes are damaged or cannot be read."""


class RewrittenError(InputError):
    """The store was written anew since it was opened, and its codes mean something else, or lie elsewhere."""


class OutputError(PipelineError):
    """The forecast could not be written."""


class AlreadyPublishedError(OutputError):
    """This cycle is published already; nothing was changed."""


class IncompleteError(OutputError):
    """Shards are missing or damaged; nothing was published."""
