//! A queue with a bell: whoever puts the first thing in rings, whoever takes everything silences the bell first.
//!
//! The only place where two threads meet without one lock over all of it. Generic over lock and bell, so that loom plays
//! every interleaving of the very lines that production runs.

/// A value behind a lock.
pub(crate) trait Guarded<T> {
    /// Does something with it, alone.
    fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> R;
}

impl<T> Guarded<T> for parking_lot::Mutex<T> {
    fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
        work(&mut self.lock())
    }
}

/// Wakes who takes; stays rung until it is silenced.
pub(crate) trait Bell {
    /// Rings.
    fn ring(&self);
    /// Silences.
    fn silence(&self);
}

/// Puts something into the queue; `put` says whether it is the first there. Rings then, after the lock is free.
pub(crate) fn put<T>(queue: &impl Guarded<T>, bell: &impl Bell, put: impl FnOnce(&mut T) -> bool) {
    if queue.with(put) {
        bell.ring();
    }
}

/// Takes what `take` takes. The bell is silenced before: rung after that, it speaks of what was put in after that too, and
/// is at worst rung for nothing.
pub(crate) fn take<T, R>(
    queue: &impl Guarded<T>,
    bell: &impl Bell,
    take: impl FnOnce(&mut T) -> R,
) -> R {
    bell.silence();
    queue.with(take)
}

#[cfg(test)]
mod tests {
    use super::*;
    use loom::{
        sync::{
            Arc, Mutex,
            atomic::{AtomicBool, Ordering},
        },
        thread,
    };

    /// As weak as an eventfd may be taken to be: the kernel orders more.
    struct Rung(AtomicBool);

    impl Bell for Rung {
        fn ring(&self) {
            self.0.store(true, Ordering::Release);
        }

        fn silence(&self) {
            self.0.store(false, Ordering::Release);
        }
    }

    struct Queue(Mutex<Vec<u32>>);

    impl Guarded<Vec<u32>> for Queue {
        fn with<R>(&self, work: impl FnOnce(&mut Vec<u32>) -> R) -> R {
            work(&mut self.0.lock().unwrap())
        }
    }

    type Take = fn(&Queue, &Rung) -> Vec<u32>;

    fn take_all(queue: &Queue, bell: &Rung) -> Vec<u32> {
        take(queue, bell, std::mem::take)
    }

    /// Two threads put things in while a third takes twice; then nothing is lost, and what still lies there rings.
    fn play(take: Take) {
        let mut model = loom::model::Builder::new();
        // More switches than there are threads find nothing that these would not.
        model.preemption_bound = Some(3);
        model.check(move || {
            let shared = Arc::new((Queue(Mutex::new(Vec::new())), Rung(AtomicBool::new(false))));
            let putting: Vec<_> = [&[1, 2][..], &[3]]
                .into_iter()
                .map(|things| {
                    let shared = Arc::clone(&shared);
                    thread::spawn(move || {
                        for thing in things {
                            put(&shared.0, &shared.1, |queue| {
                                queue.push(*thing);
                                queue.len() == 1
                            });
                        }
                    })
                })
                .collect();
            let mut taken = take(&shared.0, &shared.1);
            taken.extend(take(&shared.0, &shared.1));
            for thread in putting {
                thread.join().unwrap();
            }
            let left = shared.0.with(|queue| queue.clone());
            let is_rung = shared.1.0.load(Ordering::Acquire);
            assert!(is_rung || left.is_empty(), "{left:?} lies there unheard of");
            taken.extend(left);
            taken.sort_unstable();
            assert_eq!(vec![1, 2, 3], taken);
        });
    }

    /// Whatever the interleaving, no command is lost and none waits unheard of.
    #[test]
    fn no_command_waits_unheard_of() {
        play(take_all);
    }

    /// Silencing after taking would lose a wake-up, and this is how that would show.
    #[test]
    #[should_panic(expected = "unheard of")]
    fn silencing_too_late_is_found() {
        play(|queue, bell| {
            let taken = queue.with(std::mem::take);
            bell.silence();
            taken
        });
    }
}
