"""The tool that makes pictures; what takes them is tested in tests/reporting/test_page.py."""

from tests import processes


def test_without_a_browser_it_says_so(tmp_path):
    argv = ["tools/screenshots.py", f"--out={tmp_path / 'pictures'}"]
    out, err = tmp_path / "out", tmp_path / "err"
    code = processes.ended(processes.started(argv, out, err, {"PATH": str(tmp_path)}))
    assert code == 0, err.read_text()
    assert "No pictures: there is no Chromium here" in out.read_text()
    assert not (tmp_path / "pictures").exists()
