//! The plain back end: the oracle of every test, and the fallback where there is no GPU.
