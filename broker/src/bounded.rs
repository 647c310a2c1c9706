//! Fixed-capacity containers.
//!
//! Full is an answer: what does not fit is handed back to the caller.

/// Values under small stable indexes; a freed index is used again, lowest first is not promised.
#[derive(Debug)]
pub struct Slab<T> {
    slots: Vec<Option<T>>,
    free: Vec<u32>,
    capacity: usize,
}

impl<T> Slab<T> {
    /// An empty slab that holds at most `capacity` values.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        assert!(u32::try_from(capacity).is_ok());
        Self { slots: Vec::new(), free: Vec::new(), capacity }
    }

    /// Number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a value and gives its index.
    ///
    /// # Errors
    /// The value itself, when the slab is full.
    pub fn insert(&mut self, value: T) -> Result<u32, T> {
        if let Some(index) = self.free.pop() {
            self.slots[index as usize] = Some(value);
            return Ok(index);
        }
        if self.slots.len() == self.capacity {
            return Err(value);
        }
        self.slots.push(Some(value));
        Ok((self.slots.len() - 1) as u32)
    }

    /// Takes the value at an index out.
    pub fn remove(&mut self, index: u32) -> Option<T> {
        let value = self.slots.get_mut(index as usize)?.take()?;
        self.free.push(index);
        Some(value)
    }

    /// Index of a value for which `is_wanted` holds.
    pub fn find(&self, is_wanted: impl Fn(&T) -> bool) -> Option<u32> {
        let number = self.slots.iter().position(|slot| slot.as_ref().is_some_and(&is_wanted))?;
        Some(number as u32)
    }

    /// All values.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().flatten()
    }

    /// The value at an index.
    #[must_use]
    pub fn get(&self, index: u32) -> Option<&T> {
        self.slots.get(index as usize)?.as_ref()
    }

    /// The value at an index.
    #[must_use]
    pub fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        self.slots.get_mut(index as usize)?.as_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_slab_hands_the_value_back_and_frees_indexes() {
        let mut slab = Slab::new(2);
        assert_eq!(slab.insert('a'), Ok(0));
        assert_eq!(slab.insert('b'), Ok(1));
        assert_eq!(slab.insert('c'), Err('c'));
        assert_eq!(slab.remove(0), Some('a'));
        assert_eq!(slab.remove(0), None);
        assert_eq!((slab.insert('c'), slab.len()), (Ok(0), 2));
        assert_eq!(slab.get(1), Some(&'b'));
    }
}
