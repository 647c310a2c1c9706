//! Open descriptors, each with the number of operations that use it.
//!
//! Closing one that is in use only marks it: new operations are refused, and it is dropped when the last one
//! has ended, so that the kernel never finds another file behind a number that it was given. Sockets and
//! files are two tables of this one kind.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use crate::table::{Key, Table};

#[derive(Debug)]
struct Descriptor {
    owned: OwnedFd,
    operations: u32,
    closing: bool,
}

#[derive(Debug)]
pub(crate) struct Descriptors {
    table: Table<Descriptor>,
}

impl Descriptors {
    pub(crate) fn new(descriptors_max: u32, generations: u32) -> Self {
        Self { table: Table::new(descriptors_max, generations) }
    }

    /// Takes a descriptor in, or hands it back when the table is full.
    pub(crate) fn insert(&mut self, owned: OwnedFd) -> Result<Key, OwnedFd> {
        let descriptor = Descriptor { owned, operations: 0, closing: false };
        self.table.insert(descriptor).map_err(|refused| refused.owned)
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// Counts one more operation; `None` when the key is stale or the descriptor is being closed.
    pub(crate) fn begin(&mut self, key: Key) -> Option<RawFd> {
        let descriptor = self.table.get_mut(key).filter(|descriptor| !descriptor.closing)?;
        descriptor.operations += 1;
        Some(descriptor.owned.as_raw_fd())
    }

    /// An operation that `begin` counted has ended. Drops the descriptor if it was the last one to wait for.
    pub(crate) fn end(&mut self, key: Key) {
        let descriptor = self.table.get_mut(key).expect("a descriptor in use stays in the table");
        assert!(descriptor.operations > 0, "an operation ended twice");
        descriptor.operations -= 1;
        if descriptor.closing && descriptor.operations == 0 {
            self.table.remove(key);
        }
    }

    /// Drops the descriptor now, or after its last operation. Whether the key was good.
    pub(crate) fn close(&mut self, key: Key) -> bool {
        let Some(descriptor) = self.table.get_mut(key).filter(|descriptor| !descriptor.closing) else {
            return false;
        };
        descriptor.closing = true;
        if descriptor.operations == 0 {
            self.table.remove(key);
        }
        true
    }

    /// A look at an open descriptor.
    pub(crate) fn peek(&mut self, key: Key) -> Option<BorrowedFd<'_>> {
        let descriptor = self.table.get_mut(key).filter(|descriptor| !descriptor.closing)?;
        Some(descriptor.owned.as_fd())
    }

    /// Gives an open descriptor away; `None` when the key is stale or an operation uses it.
    pub(crate) fn take(&mut self, key: Key) -> Option<OwnedFd> {
        let descriptor = self.table.get_mut(key)?;
        if descriptor.operations > 0 {
            return None;
        }
        self.table.remove(key).map(|descriptor| descriptor.owned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn open() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn closed_descriptor_stays_until_its_last_operation_ends() {
        let mut descriptors = Descriptors::new(1, 100);
        let key = descriptors.insert(open()).unwrap();
        assert!(descriptors.begin(key).is_some());
        assert!(descriptors.begin(key).is_some());
        assert!(descriptors.close(key));
        assert!(!descriptors.close(key), "it is closing already");
        assert!(descriptors.begin(key).is_none(), "no operation starts on it any more");
        descriptors.end(key);
        assert_eq!(descriptors.len(), 1);
        descriptors.end(key);
        assert_eq!(descriptors.len(), 0);
        assert!(descriptors.peek(key).is_none());
    }

    #[test]
    fn descriptor_in_use_is_not_given_away() {
        let mut descriptors = Descriptors::new(1, 100);
        let key = descriptors.insert(open()).unwrap();
        descriptors.begin(key).unwrap();
        assert!(descriptors.take(key).is_none());
        descriptors.end(key);
        assert!(descriptors.take(key).is_some());
        assert!(descriptors.take(key).is_none());
    }

    #[test]
    fn full_table_hands_the_descriptor_back() {
        let mut descriptors = Descriptors::new(1, 100);
        descriptors.insert(open()).unwrap();
        assert!(descriptors.insert(open()).is_err());
    }
}
