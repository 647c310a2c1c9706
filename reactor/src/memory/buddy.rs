//! Buddy allocator over page numbers. It owns bookkeeping only, never memory.
//!
//! A block of order `o` is `2^o` pages and starts at a multiple of its length; its buddy is the block whose
//! start differs in bit `o`. Free blocks of one order form a doubly linked list through arrays with one
//! element for each page, which are allocated once. Invariant: `state` is not `INSIDE` exactly at the first
//! page of each block, so the blocks tile the arena; two free buddies never stand side by side.

use super::{BUFFER_BYTES_MAX, PAGE};

/// Order of the largest block.
pub(super) const ORDER_MAX: u32 = (BUFFER_BYTES_MAX / PAGE).trailing_zeros();
/// Pages of the largest block.
pub(super) const BLOCK_PAGES_MAX: u32 = 1 << ORDER_MAX;

const ORDERS: usize = ORDER_MAX as usize + 1;
/// End of a free list.
const NONE: u32 = u32::MAX;

/// `state` of a page that is not the first of its block.
const INSIDE: u8 = 0;
/// Bit in `state` of a free block's first page; the low bits hold the order.
const FREE: u8 = 0x40;
/// Bit in `state` of an allocated block's first page; the low bits hold the order.
const USED: u8 = 0x80;
const ORDER_BITS: u8 = 0x3f;

const _: () = assert!(BUFFER_BYTES_MAX == PAGE << ORDER_MAX);
const _: () = assert!(ORDER_MAX <= ORDER_BITS as u32);

pub(super) struct Buddy {
    state: Box<[u8]>,
    next: Box<[u32]>,
    previous: Box<[u32]>,
    heads: [u32; ORDERS],
    /// Bit `o` is set while the free list of order `o` is not empty.
    orders_free: u32,
    pages_used: u32,
}

impl Buddy {
    /// All free: `blocks` blocks of the largest order.
    pub(super) fn new(blocks: u32) -> Self {
        let pages = blocks.checked_mul(BLOCK_PAGES_MAX).expect("page numbers fit into 32 bits");
        let count = pages as usize;
        let mut buddy = Self {
            state: vec![INSIDE; count].into_boxed_slice(),
            next: vec![0; count].into_boxed_slice(),
            previous: vec![0; count].into_boxed_slice(),
            heads: [NONE; ORDERS],
            orders_free: 0,
            pages_used: 0,
        };
        for block in (0..blocks).rev() {
            buddy.link(block * BLOCK_PAGES_MAX, ORDER_MAX);
        }
        buddy
    }

    /// First page of a block of `order`, or `None` when no free block is large enough.
    pub(super) fn allocate(&mut self, order: u32) -> Option<u32> {
        assert!(order <= ORDER_MAX);
        let candidates = self.orders_free & (u32::MAX << order);
        if candidates == 0 {
            return None;
        }
        let mut found = candidates.trailing_zeros();
        let page = self.heads[found as usize];
        self.unlink(page, found);
        while found > order {
            found -= 1;
            self.link(page + (1 << found), found);
        }
        self.state[page as usize] = USED | order as u8;
        self.pages_used += 1 << order;
        Some(page)
    }

    /// Gives back the allocated block that starts at `page`, and joins it with its free buddies.
    pub(super) fn release(&mut self, page: u32) {
        let state = self.state[page as usize];
        assert!(state & USED != 0, "page {page} does not start an allocated block");
        let mut order = u32::from(state & ORDER_BITS);
        let mut page = page;
        self.pages_used -= 1 << order;
        self.state[page as usize] = INSIDE;
        while order < ORDER_MAX {
            let buddy = page ^ (1 << order);
            if self.state[buddy as usize] != FREE | order as u8 {
                break;
            }
            self.unlink(buddy, order);
            page &= !(1 << order);
            order += 1;
        }
        self.link(page, order);
    }

    pub(super) fn pages_used(&self) -> u32 {
        self.pages_used
    }

    /// Puts a block at the head of its order's free list.
    fn link(&mut self, page: u32, order: u32) {
        let head = self.heads[order as usize];
        self.next[page as usize] = head;
        self.previous[page as usize] = NONE;
        if head != NONE {
            self.previous[head as usize] = page;
        }
        self.heads[order as usize] = page;
        self.orders_free |= 1 << order;
        self.state[page as usize] = FREE | order as u8;
    }

    /// Takes a block out of its order's free list, wherever it stands in it.
    fn unlink(&mut self, page: u32, order: u32) {
        let next = self.next[page as usize];
        let previous = self.previous[page as usize];
        if next != NONE {
            self.previous[next as usize] = previous;
        }
        if previous == NONE {
            self.heads[order as usize] = next;
        } else {
            self.next[previous as usize] = next;
        }
        if self.heads[order as usize] == NONE {
            self.orders_free &= !(1 << order);
        }
        self.state[page as usize] = INSIDE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SplitMix64 (Steele, Lea, Flood 2014): the stream is fixed by the seed.
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ (z >> 31)) % bound
        }
    }

    fn seed() -> u64 {
        let seed = std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
        println!("SEED={seed}");
        seed
    }

    #[test]
    fn split_blocks_join_again_when_both_halves_are_free() {
        let mut buddy = Buddy::new(1);
        let low = buddy.allocate(ORDER_MAX - 1).unwrap();
        let high = buddy.allocate(ORDER_MAX - 1).unwrap();
        assert_eq!((low, high), (0, BLOCK_PAGES_MAX / 2));
        assert_eq!(buddy.allocate(0), None);
        buddy.release(low);
        assert_eq!(buddy.allocate(ORDER_MAX), None);
        buddy.release(high);
        assert_eq!(buddy.allocate(ORDER_MAX), Some(0));
    }

    #[test]
    fn every_page_can_be_allocated_and_then_none() {
        let mut buddy = Buddy::new(2);
        let mut pages: Vec<u32> = (0..2 * BLOCK_PAGES_MAX).map(|_| buddy.allocate(0).unwrap()).collect();
        assert_eq!(buddy.allocate(0), None);
        assert_eq!(buddy.pages_used(), 2 * BLOCK_PAGES_MAX);
        pages.sort_unstable();
        assert!(pages.iter().copied().eq(0..2 * BLOCK_PAGES_MAX));
        for page in pages {
            buddy.release(page);
        }
        assert_eq!(buddy.pages_used(), 0);
        assert!(buddy.allocate(ORDER_MAX).is_some());
        assert!(buddy.allocate(ORDER_MAX).is_some());
    }

    #[test]
    #[should_panic(expected = "does not start an allocated block")]
    fn second_release_of_a_block_panics() {
        let mut buddy = Buddy::new(1);
        let page = buddy.allocate(3).unwrap();
        buddy.release(page);
        buddy.release(page);
    }

    #[test]
    fn random_blocks_never_overlap_and_all_pages_come_back() {
        let mut random = Random(seed());
        let mut buddy = Buddy::new(3);
        let mut owner: Vec<Option<u32>> = vec![None; 3 * BLOCK_PAGES_MAX as usize];
        let mut blocks: Vec<(u32, u32)> = Vec::new();
        for _ in 0..20_000 {
            if random.below(100) < 55 {
                let order = random.below(u64::from(ORDER_MAX) + 1).min(random.below(14)) as u32;
                let Some(page) = buddy.allocate(order) else { continue };
                assert!(page.is_multiple_of(1 << order), "block {page} of order {order} is not aligned");
                for slot in &mut owner[page as usize..][..1 << order] {
                    assert_eq!(slot.replace(page), None, "block {page} of order {order} overlaps");
                }
                blocks.push((page, order));
            } else if !blocks.is_empty() {
                let (page, order) = blocks.swap_remove(random.below(blocks.len() as u64) as usize);
                buddy.release(page);
                owner[page as usize..][..1 << order].fill(None);
            }
            assert_eq!(buddy.pages_used(), blocks.iter().map(|(_, order)| 1 << order).sum::<u32>());
        }
        for (page, _) in blocks {
            buddy.release(page);
        }
        assert_eq!(buddy.orders_free, 1 << ORDER_MAX, "every block joined up to the largest order");
        assert_eq!((0..4).filter(|_| buddy.allocate(ORDER_MAX).is_some()).count(), 3);
    }
}
