"""The spacing of floats at 1, in what products of float32 are computed in."""

EPS_FLOAT32 = 2.0**-23
EPS_TF32 = 2.0**-10
