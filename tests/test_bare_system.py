"""pilocal where a system gives less than usual: no home, no streams, few open files."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pilocal.run_folder.files import cache_folder
from pilocal.task.text import from_home, home_folder


def test_a_user_without_a_home_has_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `docker run --user 12345` has it, where HOME is not set."""

    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert home_folder() == Path("/")
    assert cache_folder().is_absolute()
    assert from_home("~no-such-user/x") == "~no-such-user/x"


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_a_closed_stream_is_one_that_leads_nowhere(closed: str, tmp_path: Path) -> None:
    command = f'"$0" -c "from pilocal.cli import main; main()" ls --json {closed}'
    done = subprocess.run(["bash", "-c", command, sys.executable], cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == (b"" if "1>" in closed else b"[]\n")


IMPORT = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
from pilocal.packages import import_mlx_lm
import_mlx_lm()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(("soft", "hard", "left"), [(256, 1024, 1024), (256, 3000, 2048), (2500, 3000, 2500)])
def test_mlx_lm_leaves_what_is_allowed(soft: int, hard: int, left: int) -> None:
    pytest.importorskip("mlx_lm")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most != resource.RLIM_INFINITY and most < hard:
        pytest.skip(f"this system allows {most} open files")
    code = IMPORT.format(soft=soft, hard=hard)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(left), str(hard)]
