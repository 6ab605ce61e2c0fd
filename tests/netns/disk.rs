//! The disk under a backup's state file is full, read-only, gone or frozen: it still takes over
//! from a master that is proved dead, for the file holds epochs ahead.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tests::netns::run;
use tests::probe;
use tests::topology::{Options, Pair, Side, VIP};
use tests::watch::pass;

const LIMIT: Duration = Duration::from_secs(10);
/// From the kill until the other node's role says so, as a process beside it reads.
const TAKEOVER_MAX: Duration = Duration::from_millis(500);

/// A small file system of its own on a loop device, mounted; unmounted on drop.
struct Disk {
    at: PathBuf,
    frozen: bool,
}

impl Disk {
    fn mount(image: &Path, at: &Path) -> Result<Self> {
        File::create(image)?.set_len(4 << 20)?;
        run("mkfs.ext4", &["-q", "-F", &image.to_string_lossy()])?;
        fs::create_dir_all(at)?;
        run("mount", &["-o", "loop", &image.to_string_lossy(), &at.to_string_lossy()])?;
        Ok(Self { at: at.to_owned(), frozen: false })
    }

    fn remount(&self, how: &str) -> Result<()> {
        run("mount", &["-o", &format!("remount,{how}"), &self.at.to_string_lossy()]).map(drop)
    }

    fn freeze(&mut self, on: bool) -> Result<()> {
        let how = if on { "--freeze" } else { "--unfreeze" };
        run("fsfreeze", &[how, &self.at.to_string_lossy()])?;
        self.frozen = on;
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.frozen
            && let Err(error) = self.freeze(false)
        {
            eprintln!("{} stays frozen: {error:#}", self.at.display());
        }
        if let Err(error) = run("umount", &["--lazy", &self.at.to_string_lossy()]) {
            eprintln!("{} stays mounted: {error:#}", self.at.display());
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Full,
    ReadOnly,
    Gone,
    Frozen,
}

impl Fault {
    /// The last cannot be mended.
    const ALL: [Self; 4] = [Self::Full, Self::Gone, Self::Frozen, Self::ReadOnly];

    fn inflict(self, disk: &mut Disk) -> Result<()> {
        match self {
            Self::Full => {
                let mut file = File::create(disk.at.join("filler"))?;
                let chunk = vec![0; 64 << 10];
                // until the disk refuses
                while file.write_all(&chunk).and_then(|()| file.sync_data()).is_ok() {}
                Ok(())
            }
            // as ext4 does by itself after an error of the device: open files or not
            Self::ReadOnly => disk.remount("abort"),
            Self::Gone => {
                for entry in fs::read_dir(&disk.at)? {
                    let path = entry?.path();
                    let removed = if path.is_dir() {
                        fs::remove_dir_all(&path)
                    } else {
                        fs::remove_file(&path)
                    };
                    removed.with_context(|| path.display().to_string())?;
                }
                Ok(())
            }
            Self::Frozen => disk.freeze(true),
        }
    }

    fn mend(self, disk: &mut Disk) -> Result<()> {
        match self {
            Self::Full => Ok(fs::remove_file(disk.at.join("filler"))?),
            Self::ReadOnly | Self::Gone => Ok(()),
            Self::Frozen => disk.freeze(false),
        }
    }
}

/// The master's engine is killed while the backup's disk fails; the backup takes over at once and
/// nothing is lost. The fault is mended afterwards.
fn row(pair: &mut Pair, disk: &mut Disk, master: Side, fault: Fault) -> Result<Duration> {
    let writer = probe::writer(pair.client.name(), (VIP, 11211).into(), 250_000);
    pass(Duration::from_millis(200))?;
    fault.inflict(disk).with_context(|| format!("{fault:?}"))?;
    // an ack that comes late on a busy machine would make this another test
    pair.wait_protected(master)?;
    let killed = Instant::now();
    pair.kill_engine(master)?;
    let taken = pair.wait_role(master.other(), &["MASTER_SOLO", "MASTER"], LIMIT);
    let took = killed.elapsed();
    let mended = fault.mend(disk);
    taken.with_context(|| format!("{fault:?}"))?;
    mended?;
    pass(Duration::from_millis(100))?;
    let written = writer.stop()?;
    let lost = written.lost_at(&mut pair.memcached(&pair.client, VIP)?)?;
    eprintln!("{fault:?}: taken over after {took:.1?}, writer {:?}, {lost} lost", written.outage);
    ensure!(lost == 0, "{fault:?}: {lost} answered writes lost");
    ensure!(took < TAKEOVER_MAX, "{fault:?}: after {took:?}");
    Ok(took)
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn a_backup_with_a_failing_disk_takes_over() -> Result<()> {
    let mut pair = Pair::build("tandem-test", Options::default())?;
    let mut disks = Vec::new();
    for side in Side::ALL {
        let image = pair.file(&format!("disk-{}", side.name()));
        disks.push(Disk::mount(&image, &pair.state_dir(side))?);
    }
    let mut master = pair.start_both()?;
    let mut refused = Vec::new();
    for fault in Fault::ALL {
        let Some(disk) = disks.get_mut(master.other() as usize) else { bail!("a disk a node") };
        if let Err(error) = row(&mut pair, disk, master, fault) {
            refused.push(format!("{error:#}"));
        }
        let settled = pair.wait_any_protected(Duration::from_secs(20));
        master = settled.with_context(|| refused.join("\n"))?;
    }
    ensure!(refused.is_empty(), "{}", refused.join("\n"));
    // the nodes end before their disks go
    drop(pair);
    Ok(())
}
