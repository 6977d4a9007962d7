"""The spacing of floats at 1."""

EPS_HALF = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
# What float32 products are computed in.
EPS_FLOAT32 = 2.0**-23
EPS_TF32 = 2.0**-10
