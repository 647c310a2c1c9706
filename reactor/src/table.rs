//! A fixed number of slots whose keys go stale.
//!
//! Each slot counts how often it was emptied; a [`Key`] carries the count of its time, so that a key kept too
//! long finds nothing instead of a stranger. All memory is reserved at start and touched slot by slot, so
//! inserting never allocates and an unused limit costs nothing. Invariant: a slot is empty exactly when it is
//! in `free`.

/// Names one value of one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

#[derive(Debug)]
pub(crate) struct Table<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    slots_max: usize,
    generations: u32,
}

impl<T> Table<T> {
    /// Room for `slots_max` values. A slot's generation runs through `0..generations` and starts over.
    pub(crate) fn new(slots_max: u32, generations: u32) -> Self {
        assert!(generations > 1, "keys of one generation never go stale");
        let slots_max = slots_max as usize;
        let (slots, free) = (Vec::with_capacity(slots_max), Vec::with_capacity(slots_max));
        Self { slots, free, slots_max, generations }
    }

    /// Number of values.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len() == self.slots_max
    }

    /// Stores a value, or hands it back when all slots are taken. The slot emptied last is used first.
    pub(crate) fn insert(&mut self, value: T) -> Result<Key, T> {
        if let Some(slot) = self.free.pop() {
            let place = &mut self.slots[slot as usize];
            place.value = Some(value);
            return Ok(Key { slot, generation: place.generation });
        }
        if self.slots.len() == self.slots_max {
            return Err(value);
        }
        let slot = self.slots.len() as u32;
        self.slots.push(Slot { generation: 0, value: Some(value) });
        Ok(Key { slot, generation: 0 })
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let place = self.slots.get_mut(key.slot as usize)?;
        if place.generation != key.generation {
            return None;
        }
        place.value.as_mut()
    }

    /// Takes a value out; its key is stale from here on.
    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        let generations = self.generations;
        let place = self.slots.get_mut(key.slot as usize)?;
        if place.generation != key.generation {
            return None;
        }
        let value = place.value.take()?;
        place.generation = (place.generation + 1) % generations;
        self.free.push(key.slot);
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_table_hands_the_value_back() {
        let mut table = Table::new(2, 100);
        table.insert("a").unwrap();
        let second = table.insert("b").unwrap();
        assert!(table.is_full());
        assert_eq!(table.insert("c"), Err("c"));
        assert_eq!(table.remove(second), Some("b"));
        assert_eq!(table.len(), 1);
        assert!(table.insert("c").is_ok());
    }

    #[test]
    fn stale_key_finds_nothing() {
        let mut table = Table::new(1, 100);
        let old = table.insert(1).unwrap();
        assert_eq!(table.remove(old), Some(1));
        assert_eq!(table.remove(old), None);
        let new = table.insert(2).unwrap();
        assert_eq!(old.slot, new.slot);
        assert_eq!(table.get_mut(old), None);
        assert_eq!(table.remove(old), None);
        assert_eq!(table.get_mut(new), Some(&mut 2));
    }

    #[test]
    fn generations_start_over_below_their_bound() {
        let mut table = Table::new(1, 3);
        let mut seen = Vec::new();
        for _ in 0..5 {
            let key = table.insert(()).unwrap();
            seen.push(key.generation);
            table.remove(key).unwrap();
        }
        assert_eq!(seen, [0, 1, 2, 0, 1]);
    }

    #[test]
    fn inserting_up_to_the_limit_never_moves_the_slots() {
        let mut table = Table::new(1_000, 100);
        let first = table.insert(0_u64).unwrap();
        let address: *const u64 = table.get_mut(first).unwrap();
        while table.insert(1).is_ok() {}
        let same: *const u64 = table.get_mut(first).unwrap();
        assert_eq!(address, same);
    }
}
