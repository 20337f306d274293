"""The one table of tolerances; a test that needs a looser number says why."""

import torch

TOL: dict[torch.dtype, dict[str, float]] = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-10},
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
}
PARITY_ATOL = 1e-4  # networks against the official float32 outputs; the noise floor is 1e-5
