//! Which sequence holds which blocks of the paged KV cache, and which blocks hold what another may use again.
//!
//! A full block is known by its tokens and the block before it, so the index is a prefix tree and a match is exact:
//! no hash can collide. Blocks that nobody holds stay in the index until their space is needed, least recently used
//! first (vLLM's automatic prefix caching).

mod block_manager;

pub use block_manager::{BlockManager, BlockTable};
