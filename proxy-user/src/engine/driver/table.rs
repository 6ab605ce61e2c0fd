//! A slab whose places carry generations: a [`Key`] that outlived its place finds nothing.
//!
//! It is not a connection table: the drivers keep descriptors in it, and the worker's own
//! connections stand beside it under the same index.

/// The number of generations of one place: they wrap after 16 million uses.
const GENERATIONS: u32 = 1 << 24;

/// Names one adopted descriptor of one driver, and with it the connection of the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    index: u32,
    generation: u32,
}

impl Key {
    pub(in crate::engine) const fn new(index: u32, generation: u32) -> Self {
        Self { index, generation: generation & (GENERATIONS - 1) }
    }

    /// The place; small numbers, reused, fit to index a vector.
    #[must_use]
    pub const fn index(self) -> usize {
        self.index as usize
    }

    /// How often the place had been given away before; 24 bits.
    #[must_use]
    pub const fn generation(self) -> u32 {
        self.generation
    }
}

#[derive(Debug)]
struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Table<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
}

impl<T> Table<T> {
    pub(super) const fn new() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }

    /// Values held.
    pub(super) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, value: T) -> Key {
        if let Some(index) = self.free.pop() {
            let entry = &mut self.entries[index as usize];
            entry.value = Some(value);
            return Key::new(index, entry.generation);
        }
        let index = self.entries.len() as u32;
        self.entries.push(Entry { generation: 0, value: Some(value) });
        Key::new(index, 0)
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let entry = self.entries.get_mut(key.index())?;
        if entry.generation != key.generation {
            return None;
        }
        entry.value.as_mut()
    }

    pub(super) fn get(&self, key: Key) -> Option<&T> {
        let entry = self.entries.get(key.index())?;
        if entry.generation != key.generation {
            return None;
        }
        entry.value.as_ref()
    }

    /// Gives the place free; the next owner has another generation.
    pub(super) fn remove(&mut self, key: Key) -> Option<T> {
        let entry = self.entries.get_mut(key.index())?;
        if entry.generation != key.generation {
            return None;
        }
        let value = entry.value.take()?;
        entry.generation = (entry.generation + 1) & (GENERATIONS - 1);
        self.free.push(key.index);
        Some(value)
    }

    /// The keys of all values held.
    pub(super) fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.entries
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.value.is_some())
            .map(|(index, entry)| Key::new(index as u32, entry.generation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_key_finds_nothing() {
        let mut table = Table::new();
        let first = table.insert('a');
        assert_eq!(table.get(first), Some(&'a'));
        assert_eq!(table.remove(first), Some('a'));
        assert_eq!(table.remove(first), None);
        let second = table.insert('b');
        assert_eq!(second.index(), first.index(), "the place is reused");
        assert_ne!(second.generation(), first.generation());
        assert_eq!(table.get_mut(first), None);
        assert_eq!(table.get_mut(second), Some(&mut 'b'));
        assert_eq!(table.len(), 1);
        assert_eq!(table.keys().collect::<Vec<_>>(), [second]);
    }

    #[test]
    fn generations_wrap_at_24_bits() {
        let mut table = Table::new();
        let key = table.insert(());
        table.entries[key.index()].generation = GENERATIONS - 1;
        let last = Key::new(0, GENERATIONS - 1);
        assert_eq!(table.remove(last), Some(()));
        assert_eq!(table.insert(()).generation(), 0);
    }
}
