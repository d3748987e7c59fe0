//! Blocks with counted holders, an index of what full blocks contain, and copy-on-write forks.

use std::collections::{BTreeMap, HashMap};

use crate::backend::BLOCK_SIZE;

/// The blocks of one sequence, in order.
#[derive(Debug, Default)]
pub struct BlockTable {
    blocks: Vec<u32>,
    /// The contents of the leading blocks that are full and computed.
    contents: Vec<ContentId>,
}

impl BlockTable {
    /// Block numbers, the first [`BLOCK_SIZE`] tokens' first.
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }
}

/// Names the content of a full block together with all before it; never used twice.
type ContentId = u64;

/// What a full block contains: the content before it (none for the first block) and its own tokens.
type Content = (Option<ContentId>, [u32; BLOCK_SIZE]);

#[derive(Debug, Default)]
struct Block {
    /// Sequences that have it in their table.
    holders: usize,
    /// Its entry in the index.
    content: Option<Content>,
    /// When its last holder let go.
    released: u64,
}

/// Hands out the blocks of a cache.
#[derive(Debug)]
pub struct BlockManager {
    blocks: Vec<Block>,
    /// Blocks without holders and without an entry in the index.
    free: Vec<u32>,
    /// Blocks without holders that the index knows, by the time they were released.
    reusable: BTreeMap<u64, u32>,
    index: HashMap<Content, (ContentId, u32)>,
    /// The next time stamp and content name.
    clock: u64,
    prefix_cache: bool,
}

impl BlockManager {
    /// `blocks` free blocks. Without `prefix_cache` nothing is used again.
    pub fn new(blocks: usize, prefix_cache: bool) -> Self {
        Self {
            blocks: (0..blocks).map(|_| Block::default()).collect(),
            free: (0..blocks as u32).rev().collect(),
            reusable: BTreeMap::new(),
            index: HashMap::new(),
            clock: 0,
            prefix_cache,
        }
    }

    /// Blocks in all.
    pub fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that can be handed out.
    pub fn available(&self) -> usize {
        self.free.len() + self.reusable.len()
    }

    /// How many tokens of `tokens` the cache holds from the start on: whole blocks. Nothing is taken hold of.
    /// Also tells how many of those blocks are reusable ones, which are no longer available once taken.
    pub fn cached(&self, tokens: &[u32]) -> (usize, usize) {
        let found: Vec<_> = self.find(tokens).collect();
        let reusable = found.iter().filter(|(_, block)| self.blocks[*block as usize].holders == 0).count();
        (found.len() * BLOCK_SIZE, reusable)
    }

    /// A table of the blocks that hold the beginning of `tokens`, which the sequence now shares.
    pub fn share(&mut self, tokens: &[u32]) -> BlockTable {
        let (contents, blocks): (Vec<_>, Vec<_>) = self.find(tokens).unzip();
        blocks.iter().for_each(|&block| self.hold(block));
        BlockTable { blocks, contents }
    }

    /// Gives `table` blocks for `tokens` tokens in all; whether there were enough. If not, nothing has changed.
    pub fn grow(&mut self, table: &mut BlockTable, tokens: usize) -> bool {
        let missing = tokens.div_ceil(BLOCK_SIZE).saturating_sub(table.blocks.len());
        if missing > self.available() {
            return false;
        }
        table.blocks.extend((0..missing).filter_map(|_| self.take()));
        true
    }

    /// Lets the sequence write from position `from` on: a block there that others hold, too, is replaced by one of its
    /// own. Returns the copy `(from, to)` that must come before the write.
    ///
    /// # Errors
    /// When there is no block for the copy; nothing has changed.
    pub fn make_writable(&mut self, table: &mut BlockTable, from: usize) -> Result<Option<(u32, u32)>, Full> {
        let Some(slot) = table.blocks.get_mut(from / BLOCK_SIZE) else { return Ok(None) };
        let shared = *slot;
        if self.blocks[shared as usize].holders == 1 {
            return Ok(None);
        }
        let own = self.take().ok_or(Full)?;
        *slot = own;
        self.let_go(shared);
        // Whoever writes here has not computed this block whole.
        table.contents.truncate(from / BLOCK_SIZE);
        Ok(Some((shared, own)))
    }

    /// Enters the blocks of `tokens` that are full and computed into the index. `tokens` are all the sequence's tokens
    /// whose keys and values the table's blocks hold.
    pub fn enter(&mut self, table: &mut BlockTable, tokens: &[u32]) {
        if !self.prefix_cache {
            return;
        }
        for (at, chunk) in tokens.as_chunks().0.iter().enumerate().skip(table.contents.len()) {
            let content: Content = (table.contents.last().copied(), *chunk);
            let block = table.blocks[at];
            let id = match self.index.get(&content) {
                // Another sequence computed the same meanwhile; ours stays unknown, but what follows it is shared.
                Some((id, _)) => *id,
                None => {
                    let id = self.tick();
                    self.index.insert(content, (id, block));
                    self.blocks[block as usize].content = Some(content);
                    id
                }
            };
            table.contents.push(id);
        }
    }

    /// A second sequence with the same blocks.
    pub fn fork(&mut self, table: &BlockTable) -> BlockTable {
        table.blocks.iter().for_each(|&block| self.hold(block));
        BlockTable { blocks: table.blocks.clone(), contents: table.contents.clone() }
    }

    /// Takes the blocks back. The last ones will be given up first: others need the first ones to use them.
    pub fn release(&mut self, table: BlockTable) {
        table.blocks.into_iter().rev().for_each(|block| self.let_go(block));
    }

    /// Takes the blocks back, and forgets what those contain that nobody else holds: it may be wrong.
    pub fn discard(&mut self, table: BlockTable) {
        for block in table.blocks.into_iter().rev() {
            if self.blocks[block as usize].holders == 1 {
                self.forget(block);
            }
            self.let_go(block);
        }
    }

    /// The cached blocks at the start of `tokens`, with the names of their contents.
    fn find(&self, tokens: &[u32]) -> impl Iterator<Item = (ContentId, u32)> {
        let mut before = None;
        tokens.as_chunks().0.iter().map_while(move |chunk| {
            let found = *self.index.get(&(before, *chunk))?;
            before = Some(found.0);
            Some(found)
        })
    }

    fn hold(&mut self, number: u32) {
        let block = &mut self.blocks[number as usize];
        if block.holders == 0 {
            self.reusable.remove(&block.released);
        }
        block.holders += 1;
    }

    fn let_go(&mut self, number: u32) {
        let now = self.tick();
        let block = &mut self.blocks[number as usize];
        block.holders -= 1;
        if block.holders > 0 {
            return;
        }
        if block.content.is_some() {
            block.released = now;
            self.reusable.insert(now, number);
        } else {
            self.free.push(number);
        }
    }

    /// A block for one holder: a free one, else the one that was released longest ago.
    fn take(&mut self) -> Option<u32> {
        let number = match self.free.pop() {
            Some(number) => number,
            None => {
                let (_, number) = self.reusable.pop_first()?;
                self.forget(number);
                number
            }
        };
        self.blocks[number as usize].holders = 1;
        Some(number)
    }

    fn forget(&mut self, number: u32) {
        if let Some(content) = self.blocks[number as usize].content.take() {
            self.index.remove(&content);
        }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

/// No block can be handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

#[cfg(test)]
mod tests;
