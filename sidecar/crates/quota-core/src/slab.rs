//! A slab whose keys never name a later occupant.

/// Names one occupant for ever.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct Key {
    /// Slot.
    pub(crate) index: u32,
    turn: u32,
}

#[derive(Debug)]
struct Slot<T> {
    turn: u32,
    value: Option<T>,
}

/// Values under keys, O(1), in no order.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    /// Makes an empty one.
    pub(crate) const fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }

    /// Takes a value in.
    pub(crate) fn insert(&mut self, value: T) -> Key {
        if let Some(index) = self.free.pop()
            && let Some(slot) = self.slots.get_mut(index as usize)
        {
            slot.turn = slot.turn.wrapping_add(1);
            slot.value = Some(value);
            return Key {
                index,
                turn: slot.turn,
            };
        }
        let index = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        self.slots.push(Slot {
            turn: 0,
            value: Some(value),
        });
        Key { index, turn: 0 }
    }

    /// The value, while it is there.
    pub(crate) fn get(&self, key: Key) -> Option<&T> {
        self.slots
            .get(key.index as usize)
            .filter(|slot| slot.turn == key.turn)?
            .value
            .as_ref()
    }

    /// The value, while it is there.
    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        self.slots
            .get_mut(key.index as usize)
            .filter(|slot| slot.turn == key.turn)?
            .value
            .as_mut()
    }

    /// Takes it out.
    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        let slot = self
            .slots
            .get_mut(key.index as usize)
            .filter(|slot| slot.turn == key.turn)?;
        let value = slot.value.take()?;
        self.free.push(key.index);
        Some(value)
    }

    /// The occupant of a slot, and how many slots there are.
    pub(crate) fn at(&self, index: u32) -> (Option<Key>, u32) {
        let turn = self
            .slots
            .get(index as usize)
            .filter(|slot| slot.value.is_some())
            .map(|slot| slot.turn);
        let slots = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        (turn.map(|turn| Key { index, turn }), slots)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.slots.len().saturating_sub(self.free.len())
    }

    /// All keys in slot order.
    pub(crate) fn keys(&self) -> Vec<Key> {
        let named = |(index, slot): (usize, &Slot<T>)| {
            let index = u32::try_from(index).ok()?;
            slot.value.as_ref().map(|_| Key {
                index,
                turn: slot.turn,
            })
        };
        self.slots.iter().enumerate().filter_map(named).collect()
    }
}
