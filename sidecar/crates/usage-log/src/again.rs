//! Writing again after it failed on two segments: probes first, in a segment that nothing was written to.

use std::time::{Duration, Instant};

use crate::writer::{WriteError, Writer};

/// Pauses grow up to so many times the first one.
const PAUSES_MAX: u32 = 100;

/// A disk that does not take writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outage {
    /// When writing is tried again.
    pub(crate) again: Instant,
    pause: Duration,
}

impl Outage {
    /// Begins an outage.
    pub(crate) fn begin(pause: Duration) -> Self {
        let now = Instant::now();
        Self {
            again: now.checked_add(pause).unwrap_or(now),
            pause,
        }
    }

    fn go_on(self, first: Duration) -> Self {
        Self::begin(
            self.pause
                .saturating_mul(2)
                .min(first.saturating_mul(PAUSES_MAX)),
        )
    }
}

impl Writer {
    /// Where writing failed and its pause is over: probes the disk and records again if it takes what is written.
    ///
    /// Whoever waited was told of the failure then, and nothing of that is written again. What the failed group left on
    /// the disk lies behind the end that the next segment's header names, so no reader ever sees it.
    pub(crate) fn try_again(&mut self) {
        let Some(outage) = self.broken.filter(|outage| outage.again <= Instant::now()) else {
            return;
        };
        match self.probe() {
            Ok(()) if self.front.resume(self.last_seq) => self.broken = None,
            outcome => {
                if let Err(WriteError::Io(_)) = outcome {
                    self.figures.io_errors = self.figures.io_errors.saturating_add(1);
                }
                self.broken = Some(outage.go_on(self.config.retry));
            }
        }
        let figures = self.figures();
        self.front.update(&figures);
    }

    /// Writes the watermark as it is, then the header of a segment that nothing follows yet, and syncs both.
    ///
    /// A failed sync may have dropped what was written before from the page cache for good. So the present segment's
    /// header is written again: without it nobody would know where the segment before it ends.
    fn probe(&mut self) -> Result<(), WriteError> {
        let mut watermark = self.watermark;
        watermark.counter = watermark.counter.saturating_add(1);
        self.directory
            .write_slot(&watermark)
            .map_err(WriteError::Io)?;
        self.watermark = watermark;
        if let Some(header) = &self.header {
            let file = self.directory.file(self.segment);
            file.write_at(header, 0).map_err(WriteError::Io)?;
            file.sync().map_err(WriteError::Io)?;
        }
        if self.is_untouched {
            return Ok(());
        }
        self.roll(false).or_else(|error| match error {
            WriteError::NoRoom => self.roll(true),
            WriteError::Io(_) => Err(error),
        })?;
        let file = self.directory.file(self.segment);
        file.sync().map_err(WriteError::Io)
    }
}
