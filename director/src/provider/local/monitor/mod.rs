//! The monitor: one small process for each running machine, which plays the hypervisor.
//!
//! It starts the machine's init process, waits for its end and acts on the reason: a reboot from inside
//! starts it again on the same disks and network, a power-off leaves it off and ends the monitor, a crash
//! starts it again after a growing pause. It obeys one command at a time over a unix socket (`control`),
//! and is the machine's watchdog (`watchdog`). It is single-threaded apart from a thread that lives for a
//! moment, and needs no runtime.
//!
//! # Invariants
//! * A machine has one monitor at most: it holds `monitor.lock` as long as it lives. Its children inherit
//!   the lock until they are replaced by another program's start, so that a successor waits for a runc
//!   that is still at work.
//! * A machine that is off has no monitor.
//! * Its mounts are in its own mount namespace, and leave with it and the machine.
//!
//! # After a crash
//! The machine runs on. The provider starts a new monitor at its next call, which finds the running init
//! by its process number, control group and namespace, and watches it from then on. Such an adopted init is
//! not its child: before Linux 6.15 the reason for its end is lost if the host's init reaps it at once, and
//! then the end counts as a reboot.

pub(crate) mod control;
mod ending;
pub(crate) mod watchdog;

use std::ffi::OsString;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use windlass_common::error::ErrorChain;

use self::control::{Command, Reply};
use self::ending::Ending;
use self::watchdog::Watchdog;
use super::files::{What, make_dir, remove_file};
use super::layout::MachineDir;
use super::lifecycle::{KILL_LIMIT, boot, clean};
use super::record::{MonitorLock, Record, want_power, wanted_power};
use super::sys::{PidFd, poll_timeout};
use super::{disk, oci};
use crate::provider::{Power, ProviderError};

/// How long a successor waits for the lock: a runc of its predecessor may still be at work.
const LOCK_LIMIT: Duration = Duration::from_secs(35);
/// Pause between two looks at the lock.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// A machine that ran for this long was not in a crash loop.
const SETTLED: Duration = Duration::from_secs(60);
/// Longest pause before a machine that keeps crashing is started again.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// What the monitor says on standard output once the machine is in its wanted state.
pub(crate) const READY: &str = "ready";

/// Runs the monitor: `machine-monitor --dir <machine directory>`.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let dir = match args.as_slice() {
        [flag, dir] if flag == "--dir" => MachineDir(PathBuf::from(dir)),
        _ => {
            tell("usage: machine-monitor --dir <machine directory>");
            return ExitCode::from(2);
        }
    };
    match Monitor::start(&dir) {
        Ok(Some(monitor)) => {
            tell(READY);
            // The provider has heard what it waited for; from here on nobody reads.
            silence_stdout();
            monitor.serve()
        }
        Ok(None) => {
            tell(READY);
            ExitCode::SUCCESS
        }
        Err(error) => {
            let text = ErrorChain(&error).to_string().replace('\n', " ");
            tell(&format!("failed: {text}"));
            note(&format!("cannot start: {text}"));
            ExitCode::FAILURE
        }
    }
}

fn tell(line: &str) {
    // If the provider is gone, nobody needs to hear it.
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn silence_stdout() {
    if let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdout(null); // worst case: the pipe stays open
    }
}

/// A line in `monitor.log`.
fn note(line: &str) {
    let _ = writeln!(std::io::stderr(), "{} {line}", jiff::Timestamp::now());
}

/// Whether the machine runs, from the monitor's point of view.
#[derive(Debug)]
enum State {
    Up {
        init: Init,
        since: Instant,
    },
    /// It crashed and is started again at that moment.
    Pausing {
        until: Instant,
    },
}

#[derive(Debug)]
struct Init {
    pid: i32,
    pidfd: PidFd,
    watchdog: Option<Watchdog>,
}

impl Init {
    fn new(record: &Record, pid: i32, pidfd: PidFd) -> Init {
        let watchdog = Watchdog::of(&record.dir()).unwrap_or_else(|error| {
            note(&format!("the machine has no watchdog: {error}"));
            None
        });
        Init {
            pid,
            pidfd,
            watchdog,
        }
    }
}

#[derive(Debug)]
struct Monitor {
    record: Record,
    listener: UnixListener,
    state: State,
    crashes: u32,
    _lock: MonitorLock,
}

/// Whether the monitor goes on.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Serve,
    Exit,
}

impl Monitor {
    /// Becomes the machine's monitor and brings it up, or finds that it is to be off.
    fn start(dir: &MachineDir) -> Result<Option<Monitor>, ProviderError> {
        // Fails if we lead a session already: all the same.
        let _ = nix::unistd::setsid();
        let load = || {
            Record::load(dir)?.ok_or_else(|| ProviderError::NotFound {
                kind: "machine",
                name: dir.path().display().to_string(),
            })
        };
        let Some(lock) = wait_for_lock(dir, &load()?)? else {
            return Ok(None);
        };
        let record = load()?; // it may have changed in the meantime
        if !record.complete || wanted_power(dir) == Power::Stopped {
            return Ok(None);
        }
        nix::sys::prctl::set_child_subreaper(true)
            .what(|| "cannot become the reaper of the machine's processes".to_owned())?;
        unshare(CloneFlags::CLONE_NEWNS).what(|| "cannot make a mount namespace".to_owned())?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
            .what(|| "cannot detach from the host's mounts".to_owned())?;
        let listener = listen(&record)?;
        let init = match record.init() {
            Some((pid, pidfd)) => {
                note(&format!("watching init process {pid}, which runs already"));
                Init::new(&record, pid, pidfd)
            }
            None => match boot_logged(&record) {
                Ok(init) => init,
                Err(error) => {
                    // Reported is why it did not start; what cannot be removed now is removed later.
                    let _ = clean(&record);
                    return Err(error);
                }
            },
        };
        let state = State::Up {
            init,
            since: Instant::now(),
        };
        Ok(Some(Monitor {
            record,
            listener,
            state,
            crashes: 0,
            _lock: lock,
        }))
    }

    fn serve(mut self) -> ExitCode {
        loop {
            let next = match self.wait() {
                Ok(Event::Ended) => self.ended(),
                Ok(Event::PauseOver) => self.boot_again(),
                Ok(Event::Client) => self.obey(),
                Ok(Event::Told) => self.told(),
                Ok(Event::Due) => self.due(),
                Err(error) => {
                    note(&format!("cannot wait: {error}"));
                    return ExitCode::FAILURE;
                }
            };
            if next == Next::Exit {
                let _ = remove_file(&self.record.layout.socket(&self.record.name));
                return ExitCode::SUCCESS;
            }
        }
    }

    fn wait(&self) -> Result<Event, std::io::Error> {
        loop {
            let mut fds = vec![PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
            let timeout = match &self.state {
                State::Up { init, .. } => {
                    fds.push(PollFd::new(init.pidfd.as_fd(), PollFlags::POLLIN));
                    let watchdog = init.watchdog.as_ref();
                    fds.extend(watchdog.map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
                    match watchdog.and_then(Watchdog::due) {
                        Some(due) => poll_timeout(due.saturating_duration_since(Instant::now())),
                        None => PollTimeout::NONE,
                    }
                }
                State::Pausing { until } => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(Event::PauseOver);
                    }
                    poll_timeout(left)
                }
            };
            match poll(&mut fds, timeout) {
                Ok(_) => {}
                Err(nix::errno::Errno::EINTR) => continue,
                Err(e) => return Err(e.into()),
            }
            let ready = |index| {
                let events = fds.get(index).and_then(PollFd::revents);
                events.is_some_and(|events| !events.is_empty())
            };
            if ready(1) {
                return Ok(Event::Ended);
            }
            // The provider's orders first, however much the machine says.
            if ready(0) {
                return Ok(Event::Client);
            }
            // What the machine has said by now counts, also when it is due.
            if ready(2) {
                return Ok(Event::Told);
            }
            if self.is_due() {
                return Ok(Event::Due);
            }
        }
    }

    /// The init process ended by itself.
    fn ended(&mut self) -> Next {
        let State::Up { init, since } = &self.state else {
            return Next::Serve;
        };
        let ending = ending::of(init.pid, &init.pidfd);
        note(&format!("init process {} ended: {ending}", init.pid));
        match ending {
            Ending::Reboot | Ending::Unknown => self.boot_again(),
            Ending::PowerOff => {
                if let Err(error) = want_power(&self.record.dir(), Power::Stopped) {
                    note(&format!(
                        "cannot write down that it is off: {}",
                        ErrorChain(&error)
                    ));
                }
                self.boot_again()
            }
            Ending::Crash(_) => {
                self.crashes = if since.elapsed() > SETTLED {
                    1
                } else {
                    self.crashes + 1
                };
                self.pause();
                Next::Serve
            }
        }
    }

    /// The machine has told its watchdog something.
    fn told(&mut self) -> Next {
        let State::Up { init, .. } = &mut self.state else {
            return Next::Serve;
        };
        let heard = init.watchdog.as_mut().map(|pipe| pipe.read(Instant::now()));
        match heard {
            Some(Ok(notes)) => notes.iter().for_each(|line| note(line)),
            Some(Err(error)) => {
                note(&format!("the machine's watchdog cannot hear it: {error}"));
                init.watchdog = None;
            }
            None => {}
        }
        Next::Serve
    }

    /// Whether the machine has not taken back in time that it wants to be restarted.
    fn is_due(&self) -> bool {
        let State::Up { init, .. } = &self.state else {
            return false;
        };
        let due = init.watchdog.as_ref().and_then(Watchdog::due);
        due.is_some_and(|due| due <= Instant::now())
    }

    fn due(&mut self) -> Next {
        note("watchdog: the machine did not take back that it is to be restarted");
        if let Err(error) = self.restart(0) {
            note(&format!("cannot restart it: {}", ErrorChain(&error)));
        }
        Next::Serve
    }

    /// Power off and on.
    fn restart(&mut self, grace_ms: u64) -> Result<(), ProviderError> {
        let again = self.power_off(grace_ms, SIGNAL_REBOOT).and_then(|()| {
            let init = boot_logged(&self.record)?;
            self.state = State::Up {
                init,
                since: Instant::now(),
            };
            Ok(())
        });
        if again.is_err() {
            self.crashes += 1;
            self.pause();
        }
        again
    }

    fn pause(&mut self) {
        let seconds = 1u64 << self.crashes.saturating_sub(1).min(16);
        let pause = Duration::from_secs(seconds).min(PAUSE_MAX);
        note(&format!("starting it again in {} s", pause.as_secs()));
        self.state = State::Pausing {
            until: Instant::now() + pause,
        };
    }

    /// Starts the machine again, unless it is wanted off by now.
    fn boot_again(&mut self) -> Next {
        if wanted_power(&self.record.dir()) == Power::Stopped {
            return match clean(&self.record) {
                Ok(()) => Next::Exit,
                Err(error) => {
                    note(&format!("cannot clean up: {}", ErrorChain(&error)));
                    self.pause();
                    Next::Serve
                }
            };
        }
        match boot_logged(&self.record) {
            Ok(init) => {
                self.state = State::Up {
                    init,
                    since: Instant::now(),
                }
            }
            Err(error) => {
                note(&format!("cannot start: {}", ErrorChain(&error)));
                self.crashes += 1;
                self.pause();
            }
        }
        Next::Serve
    }

    /// Takes one command and carries it out.
    fn obey(&mut self) -> Next {
        let Some((command, client)) = control::accept(&self.listener) else {
            return Next::Serve;
        };
        note(&format!("asked to {command:?}"));
        let (result, next) = match command {
            Command::Stop { grace_ms } => {
                let result = want_power(&self.record.dir(), Power::Stopped)
                    .and_then(|()| self.power_off(grace_ms, SIGNAL_POWER_OFF));
                let next = if result.is_ok() {
                    Next::Exit
                } else {
                    Next::Serve
                };
                (result, next)
            }
            Command::Delete => {
                let result = self.power_off(0, SIGNAL_POWER_OFF);
                let next = if result.is_ok() {
                    Next::Exit
                } else {
                    Next::Serve
                };
                (result, next)
            }
            Command::Reboot { grace_ms } => (self.restart(grace_ms), Next::Serve),
            Command::Disks => (self.place_disks(), Next::Serve),
        };
        let reply = match result {
            Ok(()) => Reply::Done,
            Err(error) => Reply::Failed {
                detail: ErrorChain(&error).to_string(),
            },
        };
        note(&format!("answered {reply:?}"));
        // The socket's name goes first: whoever hears `done` for a stop finds no trace of us.
        if next == Next::Exit {
            let _ = remove_file(&self.record.layout.socket(&self.record.name));
        }
        client.answer(&reply);
        next
    }

    /// Asks the machine's init to go down, cuts the power after the grace, removes what is left.
    fn power_off(&mut self, grace_ms: u64, signal: i32) -> Result<(), ProviderError> {
        if let State::Up { init, .. } = &self.state {
            let waiting = || "cannot wait for the machine's init process".to_owned();
            let mut ended = false;
            if grace_ms > 0 {
                let grace = Duration::from_millis(grace_ms);
                init.pidfd
                    .signal(libc::SIGRTMIN() + signal)
                    .what(|| "cannot signal the machine's init process".to_owned())?;
                ended = init.pidfd.wait(Instant::now() + grace).what(waiting)?;
            }
            if !ended {
                init.pidfd
                    .signal(libc::SIGKILL)
                    .what(|| "cannot kill the machine's init process".to_owned())?;
            }
            // Also thaws a frozen machine, whose processes would not see the signal.
            clean(&self.record)?;
            if !init.pidfd.wait(Instant::now() + KILL_LIMIT).what(waiting)? {
                return Err(ProviderError::Deadline {
                    what: format!("ending machine {}", self.record.name),
                    limit_ms: KILL_LIMIT.as_millis() as u64,
                });
            }
            let ending = ending::of(init.pid, &init.pidfd);
            note(&format!("init process {} ended: {ending}", init.pid));
        }
        // Until the caller decides otherwise, nothing runs and nothing is to be started.
        self.state = State::Pausing {
            until: Instant::now() + PAUSE_MAX,
        };
        clean(&self.record)
    }

    /// Gives the running machine the device nodes of the disks it has by now.
    fn place_disks(&self) -> Result<(), ProviderError> {
        let State::Up { init, .. } = &self.state else {
            return Ok(());
        };
        let layout = &self.record.layout;
        let mut devices: Vec<oci::BlockDevice> = Vec::new();
        for disk in disk::of_machine(layout, &self.record.name)? {
            devices.push(disk::ensure_device(layout, &disk.name)?);
        }
        disk::place_nodes(init.pid, &devices)
    }
}

/// What systemd takes as the order to power off, above the first real-time signal.
const SIGNAL_POWER_OFF: i32 = 4;
/// What systemd takes as the order to reboot, above the first real-time signal.
const SIGNAL_REBOOT: i32 = 5;

#[derive(Debug)]
enum Event {
    Ended,
    PauseOver,
    Client,
    /// The machine speaks to its watchdog.
    Told,
    /// The machine did not take back in time that it is to be restarted.
    Due,
}

fn boot_logged(record: &Record) -> Result<Init, ProviderError> {
    let began = Instant::now();
    let (pid, pidfd) = boot(record)?;
    note(&format!(
        "started init process {pid} in {} ms",
        began.elapsed().as_millis()
    ));
    Ok(Init::new(record, pid, pidfd))
}

/// Takes the lock, or finds that another monitor has the machine running (two were started at once).
fn wait_for_lock(dir: &MachineDir, record: &Record) -> Result<Option<MonitorLock>, ProviderError> {
    let deadline = Instant::now() + LOCK_LIMIT;
    loop {
        if let Some(mut lock) = MonitorLock::take(dir)? {
            let path = dir.lock();
            lock.sign()
                .what(|| format!("cannot write {}", path.display()))?;
            // Children keep the lock until they exec something that closes it; see the module's text.
            fcntl(&lock.0, FcntlArg::F_SETFD(FdFlag::empty()))
                .what(|| format!("cannot pass on {}", path.display()))?;
            return Ok(Some(lock));
        }
        // Only a monitor listens; a runc that a dead one left behind does not.
        if record.init().is_some() && control::listens(record) {
            return Ok(None);
        }
        if Instant::now() >= deadline {
            return Err(ProviderError::Deadline {
                what: format!("waiting for another monitor of {}", dir.path().display()),
                limit_ms: LOCK_LIMIT.as_millis() as u64,
            });
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

fn listen(record: &Record) -> Result<UnixListener, ProviderError> {
    make_dir(&record.layout.run_dir(), 0o700)?;
    let path = record.layout.socket(&record.name);
    remove_file(&path)?; // of a predecessor: we hold the lock, so it is dead
    UnixListener::bind(&path).what(|| format!("cannot listen on {}", path.display()))
}
