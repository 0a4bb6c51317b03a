"""The stages of dvc.yaml, each a module that is run: `python -m stages.<name>`.

Its imports take seconds. Until `stage_runner.run` takes over, Ctrl-C ends the process at once, without a traceback.
"""

import signal
import sys

if sys.argv[0] == "-m":  # as Python has it while it looks for the module that it is to run
    signal.signal(signal.SIGINT, signal.SIG_DFL)
