"""Private torch.library ops and their autograd.

The raw ops have no autograd formula, so calling one directly loses gradients without an error: only the functions of
`mlstm` and `slstm` call them, from inside a `torch.autograd.Function`. Inputs arrive validated (xlstm_cuda.functional).
"""
