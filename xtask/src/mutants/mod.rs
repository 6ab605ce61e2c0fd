//! `cargo xtask mutants`: breaks a rule of the pair on purpose, one at a time, and shows that a
//! named test finds it. What no test finds is a rule that nobody keeps.
//!
//! The tree is copied to target/mutants/tree and broken there; all builds share one target folder,
//! so each costs what cargo must build anew. The rules are in [`table`]; a new one is a row there,
//! and `cargo test -p xtask` says at once when a row's text is not in the tree any more.

mod bounded;
mod change;
mod table;
mod tree;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::build_ebpf;
use crate::test::Failed;
use bounded::Ended;
use table::{FoundBy, Mutant};
use tree::Tree;

/// Longest time of a build: the first one builds everything.
const BUILD_LIMIT: Duration = Duration::from_secs(1800);
/// Longest time of a test; one that a broken rule makes endless is found too.
const TEST_LIMIT: Duration = Duration::from_secs(180);

/// What `mutants` can be told.
#[derive(Args, Default)]
pub(crate) struct Options {
    /// Only rules whose name has this text
    #[arg(long)]
    only: Option<String>,
    /// Say the rules, run nothing
    #[arg(long)]
    list: bool,
}

/// How one ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    /// The test failed, as it must; or it did not end.
    Found,
    /// The test passed.
    Survived,
    /// It is no mutant: its text does not fit, or it does not compile.
    Unfit(String),
}

/// Runs the verb.
///
/// # Errors
/// [`Failed`] when a mutant survived or did not fit; or what kept this from running at all.
pub(crate) fn run(options: &Options) -> Result<()> {
    let wanted = |mutant: &&Mutant| {
        options.only.as_ref().is_none_or(|text| mutant.name.contains(text.as_str()))
    };
    let mutants: Vec<_> = table::all().filter(wanted).collect();
    ensure!(!mutants.is_empty(), "no rule has this in its name: cargo xtask mutants --list");
    if options.list {
        mutants.iter().for_each(|mutant| println!("{:<60} {}", mutant.name, mutant.file));
        return Ok(());
    }
    let folder = crate::top().join("target/mutants");
    let field = Field { tree: Tree::copy(&crate::top(), &folder.join("tree"))?, folder };
    field.baseline(&mutants)?;
    let mut rows = Vec::new();
    for (number, mutant) in (1..).zip(&mutants) {
        let begun = Instant::now();
        let fate = field.try_one(mutant)?;
        let row = Row { mutant, fate, seconds: begun.elapsed().as_secs_f32() };
        eprintln!("[{number}/{}] {}", mutants.len(), row.line());
        rows.push(row);
    }
    println!();
    rows.iter().for_each(|row| println!("{}", row.line()));
    let found = rows.iter().filter(|row| row.fate == Fate::Found).count();
    println!("\n{found} of {} broken rules found", rows.len());
    if found == rows.len() { Ok(()) } else { Err(Failed.into()) }
}

struct Row<'a> {
    mutant: &'a Mutant,
    fate: Fate,
    seconds: f32,
}

impl Row<'_> {
    fn line(&self) -> String {
        let fate = match &self.fate {
            Fate::Found => self.mutant.found_by.words(),
            Fate::Survived => format!("SURVIVED {}", self.mutant.found_by.words()),
            Fate::Unfit(why) => format!("UNFIT: {why}"),
        };
        format!("{:<58} | {fate} | {:.1} s", self.mutant.name, self.seconds)
    }
}

/// Where they are tried.
struct Field {
    tree: Tree,
    folder: PathBuf,
}

impl Field {
    /// Every test that is to find something passes on the sound tree, and is there at all.
    fn baseline(&self, mutants: &[&Mutant]) -> Result<()> {
        let mut tests: Vec<FoundBy> = Vec::new();
        for mutant in mutants {
            if !tests.contains(&mutant.found_by) {
                tests.push(mutant.found_by);
            }
        }
        for (number, test) in (1..).zip(&tests) {
            eprintln!("sound tree [{number}/{}]: {}", tests.len(), test.words());
            if let Some(why) = self.build(test)? {
                bail!("the sound tree does not build: {why}");
            }
            match self.test(test)? {
                Ended::Well { passed: 0 } => bail!("no such test: {}", test.words()),
                Ended::Well { .. } => {}
                Ended::Badly | Ended::Late => bail!("the sound tree fails {}", test.words()),
            }
        }
        Ok(())
    }

    fn try_one(&self, mutant: &Mutant) -> Result<Fate> {
        let sound = self.tree.read(mutant.file)?;
        let broken = match change::apply(&sound, mutant.find, mutant.replace) {
            Ok(broken) => broken,
            Err(misfit) => return Ok(Fate::Unfit(misfit.to_string())),
        };
        self.tree.write(mutant.file, &broken)?;
        let fate = self.fate(&mutant.found_by);
        self.tree.write(mutant.file, &sound)?;
        fate
    }

    fn fate(&self, test: &FoundBy) -> Result<Fate> {
        if let Some(why) = self.build(test)? {
            return Ok(Fate::Unfit(format!("does not compile: {why}")));
        }
        Ok(match self.test(test)? {
            Ended::Well { .. } => Fate::Survived,
            Ended::Badly | Ended::Late => Fate::Found,
        })
    }

    /// The first error, if it does not build.
    fn build(&self, test: &FoundBy) -> Result<Option<String>> {
        let mut command = self.cargo(test);
        command.arg("--no-run");
        let log = self.folder.join("build.log");
        match bounded::run(&mut command, &log, BUILD_LIMIT)? {
            Ended::Well { .. } => Ok(None),
            Ended::Late => bail!("a build took more than {} s", BUILD_LIMIT.as_secs()),
            Ended::Badly => {
                let text = std::fs::read_to_string(&log).context("read the build's log")?;
                let error = text.lines().find(|line| line.starts_with("error"));
                Ok(Some(error.unwrap_or("see build.log").to_owned()))
            }
        }
    }

    fn test(&self, test: &FoundBy) -> Result<Ended> {
        let mut command = self.cargo(test);
        command.args(["--", "--exact", test.name]);
        bounded::run(&mut command, &self.folder.join("test.log"), TEST_LIMIT)
    }

    fn cargo(&self, test: &FoundBy) -> Command {
        let mut command = Command::new(build_ebpf::cargo());
        command
            .current_dir(self.tree.folder())
            .env("CARGO_TARGET_DIR", self.folder.join("build"))
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env("CARGO_TERM_COLOR", "never")
            .env("RUST_BACKTRACE", "0")
            .args(["test", "-q", "-p", test.package]);
        match test.target {
            "" => command.arg("--lib"),
            target => command.args(["--test", target]),
        };
        if !test.seeds.is_empty() {
            command.env("SIM_SEEDS", test.seeds);
        }
        command
    }
}
