//! The rules that are broken on purpose. A row: what the break comes to, where, the text (once in
//! its file) and what stands there instead, and the test that must fail then.

mod address;
mod content;
mod host;
mod pair;
mod rights;

/// One broken rule.
#[derive(Debug)]
pub(super) struct Mutant {
    /// What the node does now that it must not.
    pub(super) name: &'static str,
    /// From the top of the tree.
    pub(super) file: &'static str,
    /// Exactly this text, once in the file.
    pub(super) find: &'static str,
    /// Instead of it.
    pub(super) replace: &'static str,
    /// The test that must not pass.
    pub(super) found_by: FoundBy,
}

/// A test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FoundBy {
    pub(super) package: &'static str,
    /// The test target; empty for the library's own tests.
    pub(super) target: &'static str,
    /// Its whole name.
    pub(super) name: &'static str,
    /// `SIM_SEEDS`, for the simulation.
    pub(super) seeds: &'static str,
}

impl FoundBy {
    /// For people.
    pub(super) fn words(&self) -> String {
        let target = if self.target.is_empty() { self.package } else { self.target };
        let seeds = if self.seeds.is_empty() { "" } else { " seeds " };
        format!("{target}: {}{seeds}{}", self.name, self.seeds)
    }
}

/// A test of a library.
const fn lib(package: &'static str, name: &'static str) -> FoundBy {
    FoundBy { package, target: "", name, seeds: "" }
}

/// A seed, or a range of them, of the simulation.
const fn seeds(seeds: &'static str) -> FoundBy {
    FoundBy { package: "tests", target: "sim", name: "seeds_hold", seeds }
}

/// A test of the simulation.
const fn sim(name: &'static str) -> FoundBy {
    FoundBy { package: "tests", target: "sim", name, seeds: "" }
}

/// All of them.
pub(super) fn all() -> impl Iterator<Item = &'static Mutant> {
    [content::ROWS, address::ROWS, pair::ROWS, host::ROWS, rights::ROWS].into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::super::change;
    use super::*;

    #[test]
    fn every_row_fits_the_tree() {
        let mut names: Vec<_> = all().map(|mutant| mutant.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all().count(), "a name twice");
        let mut bad = Vec::new();
        for mutant in all() {
            let text = std::fs::read_to_string(crate::top().join(mutant.file)).unwrap();
            if let Err(misfit) = change::apply(&text, mutant.find, mutant.replace) {
                bad.push(format!("{}: {misfit}", mutant.name));
            }
        }
        assert!(bad.is_empty(), "{bad:#?}");
    }
}
