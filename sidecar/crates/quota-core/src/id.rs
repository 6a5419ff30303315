//! Names of things that are sixteen bytes.

macro_rules! sixteen_bytes {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
        pub struct $name(pub [u8; 16]);
    };
}

sixteen_bytes!(
    /// One process start. Nothing else identifies who holds units.
    Holder
);
sixteen_bytes!(
    /// One (identity, timeline, start, round), named by the ledger.
    WindowId
);
sixteen_bytes!(
    /// One reservation.
    ReservationId
);
sixteen_bytes!(
    /// First half of SHA-256 over the length-prefixed key values of a split limit; zeros where nothing splits it.
    KeyHash
);
sixteen_bytes!(
    /// First half of SHA-256 over a window's name and a value: one value is another in each window.
    ValueHash
);
