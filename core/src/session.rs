//! One sequence on one executable: chunked prefill, decode, and reuse of the common prefix.
