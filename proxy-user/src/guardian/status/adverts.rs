//! One line each minute for adverts that were refused since the last line. Pure: the caller reads
//! the clock.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use vrrp::Refusal;

/// Between two lines.
const EVERY: Duration = Duration::from_secs(60);

/// What was told of each virtual router, and when.
#[derive(Debug, Clone, Default)]
pub struct RefusedAdverts {
    told: Vec<[u64; Refusal::KINDS]>,
    told_at: Option<Instant>,
}

impl RefusedAdverts {
    /// The counters of every virtual router at `now`, each time in the same order. A sentence when
    /// one is due: at once for the first refusal, then each minute in which there was one.
    pub fn turn<'a>(
        &mut self,
        now: Instant,
        counters: impl IntoIterator<Item = &'a vrrp::Counters>,
    ) -> Option<String> {
        if self.told_at.is_some_and(|at| now.saturating_duration_since(at) < EVERY) {
            return None;
        }
        let mut new = [0_u64; Refusal::KINDS];
        for (index, counters) in counters.into_iter().enumerate() {
            if self.told.len() == index {
                self.told.push([0; Refusal::KINDS]);
            }
            let told = &mut self.told[index];
            for ((new, told), now) in new.iter_mut().zip(told.iter_mut()).zip(counters.refused) {
                *new += now.saturating_sub(*told);
                *told = now;
            }
        }
        let total: u64 = new.iter().sum();
        if total == 0 {
            return None;
        }
        self.told_at = Some(now);
        let mut text = format!("{total} adverts refused since the last line:");
        for (index, count) in new.iter().enumerate().filter(|(_, count)| **count > 0) {
            // A String takes everything.
            write!(text, " {} {count},", Refusal::name(index).unwrap_or("?")).unwrap_or_default();
        }
        text.truncate(text.len() - 1);
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_said_at_once_and_then_one_line_a_minute() {
        let (mut report, start) = (RefusedAdverts::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut counters = [vrrp::Counters::default(), vrrp::Counters::default()];
        assert_eq!(report.turn(at(0), &counters), None);
        counters[1].refused[0] = 2;
        let text = report.turn(at(1), &counters).unwrap();
        assert_eq!(text, "2 adverts refused since the last line: hop_limit 2");
        counters[0].refused[6] = 5;
        counters[1].refused[0] = 3;
        assert_eq!(report.turn(at(60), &counters), None, "within the minute");
        let text = report.turn(at(61), &counters).unwrap();
        assert_eq!(text, "6 adverts refused since the last line: hop_limit 1, checksum 5");
        assert_eq!(report.turn(at(200), &counters), None, "nothing new");
        counters[0].refused[6] = 6;
        assert!(report.turn(at(201), &counters).is_some(), "a quiet minute is over");
    }
}
