"""Methods of others, to compare with: small, on the same data, epochs and bytes as the library's.

:mod:`baselines.training` is the loop that all share, :mod:`baselines.files` what is written and
read again; every other module is one method. ``scripts/reproduce baselines`` runs them.
"""

import os

# Factorisations of thin matrices: a second thread waits longer than it works, the more so beside
# other programs. It is read when NumPy is loaded, so this module comes before that.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
