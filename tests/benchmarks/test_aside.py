"""What is set aside is out of the way at once, and gone at the end."""

from benchmarks.aside import remove_aside, set_aside


def test_what_is_set_aside_leaves_its_place_and_is_removed_at_the_end(tmp_path):
    out = tmp_path / "case" / "out"
    for _ in range(2):
        out.mkdir(parents=True)
        (out / "cycle").write_text("codes")
        set_aside(out)
        assert not out.exists()
    set_aside(out)  # nothing is there
    assert len(list(tmp_path.rglob("cycle"))) == 2
    remove_aside(tmp_path)
    assert list((tmp_path / "case").iterdir()) == []
