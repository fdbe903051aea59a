"""Worker processes of loaders do not hold up the end of their process."""

import subprocess
import sys

KEEPS = """
import sys
from fakes.tiny import TinyCIR
data = TinyCIR(sys.argv[1])
data.num_workers = 2
data.prepare_data()
data.setup("fit")
kept = iter(data.train_dataloader())
next(kept)
print("ends", flush=True)
"""


def test_a_process_ends_while_its_workers_wait_for_work(tmp_path):
    run = subprocess.run([sys.executable, "-c", KEEPS, str(tmp_path)], capture_output=True, text=True, check=False, timeout=60)
    assert (run.returncode, run.stdout) == (0, "ends\n"), run.stderr
