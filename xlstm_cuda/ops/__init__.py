"""Private torch.library ops and their autograd.

`signatures` lists what they take and give, `library` makes ops of these lists, `launch` turns tensors into addresses. Operands
arrive validated (xlstm_cuda.functional). Every op carries its gradient, so programs that call one directly, as exported ones do,
train.
"""
