//! The summary: one row for each kind of fault at each of master and backup.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::plan::Step;
use crate::play::Played;

#[derive(Debug, Default)]
struct Row {
    udp: Vec<Duration>,
    writer: Duration,
    settled: Duration,
    contested: Duration,
    promotions: usize,
    false_takeovers: usize,
    lost: u64,
}

/// Everything that was seen, added up.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: BTreeMap<String, Row>,
    answered: u64,
}

impl Report {
    pub(crate) fn add(&mut self, step: &Step, played: &Played) {
        let at = if step.at_master { "master" } else { "backup" };
        let double = if step.double { " (double)" } else { "" };
        let row = self.rows.entry(format!("{}, {at}{double}", step.fault.kind())).or_default();
        let seen = &played.seen;
        row.udp.push(seen.udp.longest);
        row.writer = row.writer.max(seen.written.outage.longest);
        row.settled = row.settled.max(played.settled);
        row.contested = row.contested.max(seen.answers.contested());
        row.promotions += seen.promotions.iter().sum::<usize>();
        row.lost += seen.lost;
        let backup = played.master.other();
        let took = seen.promotions[backup as usize] > 0;
        row.false_takeovers += usize::from(took && played.victim == backup);
        self.answered += seen.written.answered.iter().flatten().count() as u64;
    }

    /// Printed as it stands, also after a failure.
    pub(crate) fn print(&mut self) {
        let ms = |time: Duration| format!("{:.0}", time.as_secs_f64() * 1e3);
        eprintln!(
            "\n{:<34} {:>4} {:>7} {:>7} {:>9} {:>7} {:>6} {:>6} {:>5} {:>5}",
            "fault",
            "runs",
            "UDP med",
            "UDP max",
            "writer mx",
            "healed",
            "two ms",
            "promo.",
            "false",
            "lost"
        );
        let mut runs = 0;
        for (name, row) in &mut self.rows {
            row.udp.sort();
            runs += row.udp.len();
            let at = |index: usize| row.udp.get(index).copied().unwrap_or_default();
            let last = row.udp.len().saturating_sub(1);
            eprintln!(
                "{name:<34} {:>4} {:>7} {:>7} {:>9} {:>7} {:>6} {:>6} {:>5} {:>5}",
                row.udp.len(),
                ms(at(last / 2)),
                ms(at(last)),
                ms(row.writer),
                ms(row.settled),
                ms(row.contested),
                row.promotions,
                row.false_takeovers,
                row.lost,
            );
        }
        let of = |double: bool| -> u64 {
            let some = self.rows.iter().filter(|(name, _)| name.ends_with("(double)") == double);
            some.map(|(_, row)| row.lost).sum()
        };
        eprintln!(
            "{runs} faults, {} answered keys read back; lost: {} of single faults, {} of stated \
             double faults.\nmilliseconds; UDP: longest gap of a probe each ms; healed: from the \
             heal until protected; two: both answered\nARP; promo.: promotions; false: a backup \
             that was itself at fault took over.",
            self.answered,
            of(false),
            of(true)
        );
    }
}
