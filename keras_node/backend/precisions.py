"""The spacing at 1 of the floats that float32 products are computed in."""

EPS_FLOAT32 = 2.0**-23
EPS_TF32 = 2.0**-10
