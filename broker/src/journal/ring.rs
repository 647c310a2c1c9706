//! Which journal file is used when: all of them in turn, for ever.
//!
//! A file's *turn* counts up over all uses; the file that has a turn is looked up here. After the last file that is
//! there comes file 0. A file is used again once no kept snapshot needs what it holds.

use std::collections::VecDeque;

/// The files in use, in the order of their turns.
#[derive(Debug)]
pub(super) struct Ring {
    files: VecDeque<u32>,
    first_turn: u64,
    prepared: u32,
    is_in_use: Vec<bool>,
    /// Turns that can be given before something is recycled or made.
    free_ahead: u64,
}

impl Ring {
    /// A ring in which these files are in use, in this order; the first one has turn 0.
    pub(super) fn new(files: Vec<u32>, prepared: u32) -> Self {
        assert!(!files.is_empty());
        let mut is_in_use = vec![false; prepared as usize];
        for file in &files {
            assert!(!std::mem::replace(&mut is_in_use[*file as usize], true));
        }
        let mut ring = Self { files: files.into(), first_turn: 0, prepared, is_in_use, free_ahead: 0 };
        ring.count_free();
        ring
    }

    pub(super) fn prepared(&self) -> u32 {
        self.prepared
    }

    /// One more file is there.
    pub(super) fn on_prepared(&mut self) {
        self.prepared += 1;
        self.is_in_use.push(false);
        self.count_free();
    }

    /// The oldest turn whose file is in use.
    pub(super) fn first_turn(&self) -> u64 {
        self.first_turn
    }

    /// The turn behind the last one that can be had now.
    pub(super) fn end_turn(&self) -> u64 {
        self.first_turn + self.files.len() as u64 + self.free_ahead
    }

    /// The file that has a turn; takes files into use up to it.
    pub(super) fn file(&mut self, turn: u64) -> u32 {
        assert!(turn < self.end_turn());
        while turn >= self.first_turn + self.files.len() as u64 {
            let next = self.behind(*self.files.back().expect("a file is in use"));
            assert!(!std::mem::replace(&mut self.is_in_use[next as usize], true));
            self.files.push_back(next);
            self.free_ahead -= 1;
        }
        self.files[(turn - self.first_turn) as usize]
    }

    /// What turns before this one hold is not needed any more.
    pub(super) fn recycle(&mut self, turn: u64) {
        while self.first_turn < turn && self.files.len() > 1 {
            if let Some(file) = self.files.pop_front() {
                self.is_in_use[file as usize] = false;
            }
            self.first_turn += 1;
        }
        self.count_free();
    }

    fn behind(&self, file: u32) -> u32 {
        if file + 1 < self.prepared { file + 1 } else { 0 }
    }

    fn count_free(&mut self) {
        self.free_ahead = 0;
        let mut next = self.behind(*self.files.back().expect("a file is in use"));
        while !self.is_in_use[next as usize] && self.free_ahead < u64::from(self.prepared) {
            self.free_ahead += 1;
            next = self.behind(next);
        }
        // Each free file is counted once: the walk ends at the oldest file in use, or at a newer one before it.
        self.free_ahead = self.free_ahead.min(u64::from(self.prepared) - self.files.len() as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_used_in_turn_and_again_once_they_are_recycled() {
        let mut ring = Ring::new(vec![0], 3);
        assert_eq!(ring.end_turn(), 3);
        assert_eq!([ring.file(0), ring.file(1), ring.file(2)], [0, 1, 2]);
        assert_eq!(ring.end_turn(), 3);
        ring.recycle(2);
        assert_eq!((ring.first_turn(), ring.end_turn()), (2, 5));
        assert_eq!([ring.file(2), ring.file(3), ring.file(4)], [2, 0, 1]);
    }

    #[test]
    fn a_new_file_comes_behind_the_last_one() {
        let mut ring = Ring::new(vec![1, 0], 2);
        assert_eq!(ring.end_turn(), 2);
        // The ring is at file 0, behind it comes 1, which is in use: the new file waits for its turn.
        ring.on_prepared();
        assert_eq!(ring.end_turn(), 2);
        ring.recycle(1);
        assert_eq!(ring.end_turn(), 4);
        assert_eq!([ring.file(1), ring.file(2), ring.file(3)], [0, 1, 2]);
    }
}
