//! The times of VRRP: advertisement interval, skew, Active-down; and the table of an instance's
//! two deadlines. Pure arithmetic; units are centiseconds on the wire and [`Duration`] inside.

use std::fmt;
use std::time::{Duration, Instant};

use crate::config::Priority;
use crate::packet::Version;

/// `Advertisement_Interval` in centiseconds (RFC 9568 §6.1): 1 to 4095 in version 3,
/// whole seconds 1 to 255 in version 2 (RFC 3768 §6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AdvertInterval(u16);

impl AdvertInterval {
    /// 4095 centiseconds, the largest value of the 12-bit field (RFC 9568 §5.2.7).
    pub const MAX_V3: u16 = 4095;
    /// One second, the default of both RFCs.
    pub const DEFAULT: Self = Self(100);

    /// `None` for 0 (RFC 9568 erratum 8301) and above 4095.
    #[must_use]
    pub const fn from_centiseconds(value: u16) -> Option<Self> {
        if value == 0 || value > Self::MAX_V3 { None } else { Some(Self(value)) }
    }

    /// Version 2's whole seconds; `None` for 0.
    #[must_use]
    pub fn from_seconds(value: u8) -> Option<Self> {
        if value == 0 { None } else { Some(Self(u16::from(value) * 100)) }
    }

    /// Exact only: `None` unless it is a whole number of centiseconds, 10 ms to 40.95 s.
    #[must_use]
    pub fn from_duration(value: Duration) -> Option<Self> {
        let nanos = value.as_nanos();
        let centiseconds = u16::try_from(nanos / 10_000_000).ok()?;
        if nanos.is_multiple_of(10_000_000) { Self::from_centiseconds(centiseconds) } else { None }
    }

    /// Centiseconds, 1 to 25500.
    #[must_use]
    pub const fn centiseconds(self) -> u16 {
        self.0
    }

    /// Seconds for version 2's field; `None` if it is not a whole number of them, 1 to 255.
    #[must_use]
    pub fn whole_seconds(self) -> Option<u8> {
        if self.0.is_multiple_of(100) { u8::try_from(self.0 / 100).ok() } else { None }
    }

    /// As a [`Duration`].
    #[must_use]
    pub fn duration(self) -> Duration {
        Duration::from_millis(u64::from(self.0) * 10)
    }
}

impl fmt::Display for AdvertInterval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", u32::from(self.0) * 10)
    }
}

/// `Skew_Time`: version 3 `((256 - Priority) * Active_Adver_Interval) / 256` (RFC 9568 §6.1),
/// version 2 `(256 - Priority) / 256` seconds (RFC 3768 §6.1).
///
/// Kept in nanoseconds: in whole centiseconds a 10 ms interval would have no skew at all, and two
/// backups of different priority would fire together.
#[must_use]
pub fn skew(version: Version, priority: Priority, interval: AdvertInterval) -> Duration {
    let base = match version {
        Version::V2 => Duration::from_secs(1),
        Version::V3 => interval.duration(),
    };
    base * (256 - u32::from(priority.get())) / 256
}

/// `Active_Down_Interval`: `(multiplier * Active_Adver_Interval) + Skew_Time` (RFC 9568 §6.1 with
/// multiplier 3; `Master_Down_Interval` of RFC 3768 §6.1).
#[must_use]
pub fn active_down(
    version: Version,
    priority: Priority,
    interval: AdvertInterval,
    multiplier: u8,
) -> Duration {
    interval.duration() * u32::from(multiplier) + skew(version, priority, interval)
}

/// The two timers of RFC 9568 §6.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Timer {
    /// `Active_Down_Timer`: runs in Backup.
    ActiveDown,
    /// `Adver_Timer`: runs in Active.
    Advert,
}

/// Deadlines by timer; one wake-up is the earliest of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct TimerTable([Option<Instant>; 2]);

impl TimerTable {
    pub(crate) fn set(&mut self, timer: Timer, at: Instant) {
        self.0[timer as usize] = Some(at);
    }

    pub(crate) fn stop_all(&mut self) {
        self.0 = [None; 2];
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.0.iter().flatten().min().copied()
    }

    /// Disarms `timer` and returns its deadline if that has come.
    pub(crate) fn take_due(&mut self, timer: Timer, now: Instant) -> Option<Instant> {
        self.0[timer as usize].take_if(|at| *at <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cs(value: u16) -> AdvertInterval {
        AdvertInterval::from_centiseconds(value).unwrap()
    }

    #[test]
    fn down_intervals_match_those_measured_on_keepalived() {
        let down = |v, i| active_down(v, Priority::new(100), i, 3).as_secs_f64() * 1000.0;
        assert_eq!(down(Version::V2, AdvertInterval::DEFAULT).round(), 3609.0);
        assert_eq!(down(Version::V3, cs(10)).round(), 361.0);
        assert_eq!(down(Version::V3, cs(3)).round(), 108.0);
        assert_eq!(down(Version::V3, cs(1)).round(), 36.0);
    }

    #[test]
    fn skew_falls_with_priority_and_scales_with_the_interval_in_version_3_only() {
        let at = |v, p, i| skew(v, Priority::new(p), i);
        assert_eq!(at(Version::V3, 255, cs(256)), Duration::from_millis(10));
        assert_eq!(at(Version::V3, 0, cs(256)), Duration::from_millis(2560));
        assert_eq!(at(Version::V3, 254, cs(1)), Duration::from_nanos(78_125));
        assert_eq!(at(Version::V2, 128, cs(100)), Duration::from_millis(500));
        assert_eq!(at(Version::V2, 128, cs(1000)), Duration::from_millis(500));
    }

    #[test]
    fn interval_bounds() {
        assert_eq!(AdvertInterval::from_centiseconds(0), None);
        assert_eq!(AdvertInterval::from_centiseconds(4096), None);
        assert_eq!(cs(4095).duration(), Duration::from_millis(40_950));
        assert_eq!(AdvertInterval::from_seconds(0), None);
        assert_eq!(AdvertInterval::from_seconds(255).unwrap().whole_seconds(), Some(255));
        assert_eq!(cs(150).whole_seconds(), None);
        let from = AdvertInterval::from_duration;
        assert_eq!(from(Duration::from_millis(100)), Some(cs(10)));
        assert_eq!(from(Duration::from_millis(15)), None);
        assert_eq!(from(Duration::from_millis(5)), None);
        assert_eq!(from(Duration::from_secs(41)), None);
        assert_eq!(from(Duration::from_secs(u64::MAX)), None);
    }

    #[test]
    fn table_keeps_the_earliest_and_fires_only_what_is_due() {
        #[expect(clippy::disallowed_methods, reason = "an Instant has no other source")]
        let t0 = Instant::now();
        let ms = |n| t0 + Duration::from_millis(n);
        let mut table = TimerTable::default();
        assert_eq!(table.next(), None);
        table.set(Timer::ActiveDown, ms(5));
        table.set(Timer::Advert, ms(3));
        assert_eq!(table.next(), Some(ms(3)));
        assert_eq!(table.take_due(Timer::ActiveDown, ms(4)), None);
        assert_eq!(table.take_due(Timer::Advert, ms(4)), Some(ms(3)));
        assert_eq!(table.next(), Some(ms(5)));
        table.stop_all();
        assert_eq!(table.next(), None);
    }
}
