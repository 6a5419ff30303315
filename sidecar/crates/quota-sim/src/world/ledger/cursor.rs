//! The windows of one identity: the two newest are known, they never overlap, and nothing is opened before a floor.

/// A window's place in the list of all, and its span.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) window: usize,
    pub(super) start_us: i64,
    pub(super) end_us: i64,
}

impl Place {
    const fn holds(&self, at_us: i64) -> bool {
        self.start_us <= at_us && at_us < self.end_us
    }
}

/// What is known of an identity's windows.
#[derive(Clone, Debug, Default)]
pub(super) struct Cursor {
    older: Option<Place>,
    newer: Option<Place>,
    floor_us: i64,
    /// Generations of its pools so far.
    pub(super) generation_n: u64,
}

impl Cursor {
    /// The known window that holds `at_us`.
    pub(super) fn find(&self, at_us: i64) -> Option<usize> {
        let known = [self.newer, self.older];
        let found = known.into_iter().flatten().find(|place| place.holds(at_us));
        found.map(|place| place.window)
    }

    /// Puts another window in the place of a known one.
    pub(super) fn replace(&mut self, window: usize, by: usize) {
        for place in [&mut self.older, &mut self.newer].into_iter().flatten() {
            if place.window == window {
                place.window = by;
            }
        }
    }

    /// Opens a window, cut where known ones begin or end; `None` where that time is over for good.
    pub(super) fn open(
        &mut self,
        at_us: i64,
        (start_us, end_us): (i64, i64),
        window: usize,
    ) -> Option<(i64, i64)> {
        let (mut start_us, mut end_us) = (start_us.max(self.floor_us), end_us);
        let known: Vec<Place> = [self.older, self.newer].into_iter().flatten().collect();
        for place in &known {
            if place.end_us <= at_us {
                start_us = start_us.max(place.end_us);
            } else {
                end_us = end_us.min(place.start_us);
            }
        }
        if at_us < self.floor_us || (known.len() == 2 && at_us < known[0].start_us) {
            return None;
        }
        let mut places = known;
        places.push(Place {
            window,
            start_us,
            end_us,
        });
        places.sort_by_key(|place| place.start_us);
        while places.len() > 2 {
            self.floor_us = self.floor_us.max(places.remove(0).end_us);
        }
        self.newer = places.pop();
        self.older = places.pop();
        Some((start_us, end_us))
    }
}
