//! Sessions: a real shell on a real terminal, watched usage, and that all of it ends with its reader.

use tokio::time::timeout;

use windlass_common::id::Epoch;
use windlass_common::limits::SESSIONS_ON_MACHINE_MAX;
use windlass_common::wire::frame::Frame;
use windlass_common::wire::message::Body;
use windlass_common::wire::session::{
    OpenShell, Origin, RunCommand, SendSnapshot, SessionEnd, SessionInput as Input,
    SessionOutput as Output, SessionResize, VitalsSample, WatchVitals,
};
use windlass_director::gateway::{DeliveryError, SessionInput, SessionOutput};

use windlass_common::step::OutputStream;

use crate::world::{Director, Machine, PATIENCE, wait_for};

fn origin(epoch: u64) -> Origin {
    Origin {
        operator: "ann".to_owned(),
        request: "r1".to_owned(),
        epoch: Epoch(epoch),
    }
}

fn shell() -> OpenShell {
    OpenShell {
        origin: origin(1),
        term: "xterm".to_owned(),
        rows: 30,
        columns: 90,
    }
}

async fn start() -> (Director, Machine, tempfile::TempDir) {
    let director = Director::start().await;
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::boot(director.settings("demo-cp-0", 1), dir.path());
    director.connected(&machine).await;
    (director, machine, dir)
}

/// A shell on a machine, driven as a person would.
struct Typist {
    input: SessionInput,
    output: SessionOutput,
    shown: String,
    /// What came before that which was looked for last.
    before: String,
}

impl Typist {
    async fn open(director: &Director, machine: &Machine) -> Result<Typist, DeliveryError> {
        let opened = director
            .gateway()
            .open_session(&machine.name, machine.incarnation, &shell())
            .await;
        opened.map(|(input, output)| Typist {
            input,
            output,
            shown: String::new(),
            before: String::new(),
        })
    }

    async fn types(&mut self, text: &str) {
        let bytes = text.as_bytes().to_vec();
        let frame = Frame::of(&Input { bytes }).unwrap();
        self.input.send(&frame).await.unwrap();
    }

    /// Reads until `wanted` was shown; what comes after it is looked for next. Echoes do not count:
    /// callers ask for what only the result holds.
    async fn sees(&mut self, wanted: &str) {
        let read = async {
            while !self.shown.contains(wanted) {
                let frame = self.output.next().await.unwrap();
                let Output { bytes, .. } = frame.body().unwrap();
                self.shown.push_str(&String::from_utf8_lossy(&bytes));
            }
        };
        if timeout(PATIENCE, read).await.is_err() {
            panic!("{wanted:?} was not shown: {:?}", self.shown);
        }
        let (before, rest) = self.shown.split_once(wanted).unwrap();
        (self.before, self.shown) = (before.to_owned(), rest.to_owned());
    }

    async fn ends(&mut self) -> SessionEnd {
        let read = async {
            loop {
                let frame = self.output.next().await.unwrap();
                if frame.kind == SessionEnd::KIND {
                    return frame.body().unwrap();
                }
            }
        };
        timeout(PATIENCE, read).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shell_has_a_terminal_of_its_own_and_says_how_it_ended() {
    let (director, machine, _dir) = start().await;
    let mut typist = Typist::open(&director, &machine).await.unwrap();
    typist.types("echo on-$((40+2)) $(tty)\n").await;
    typist.sees("on-42 /dev/pts/").await;
    typist.types("stty size; echo sized-$((1+1))\n").await;
    typist.sees("30 90").await;
    typist.sees("sized-2").await;
    let resize = SessionResize {
        rows: 50,
        columns: 132,
    };
    let frame = Frame::of(&resize).unwrap();
    typist.input.send(&frame).await.unwrap();
    typist.types("stty size; echo sized-$((1+2))\n").await;
    typist.sees("50 132").await;
    typist.sees("sized-3").await;
    // Ctrl-C is for what runs in the shell, once that has the terminal; the shell lives on.
    typist.types("echo \"pid\"-$$-; sleep 1000\n").await;
    typist.sees("pid-").await;
    typist.sees("-").await;
    let shell: i32 = typist.before.parse().unwrap();
    wait_for("sleep has the terminal", || sleep_is_in_front(shell)).await;
    typist.types("\u{3}").await;
    typist.types("echo alive-$((2+2))\n").await;
    typist.sees("alive-4").await;
    // Only what was said to be there: nothing of the agent's own environment.
    typist
        .types("echo env-${CARGO_MANIFEST_DIR:-none}-$TERM\n")
        .await;
    typist.sees("env-none-xterm").await;
    typist.types("exit 7\n").await;
    assert_eq!(typist.ends().await, SessionEnd::Exit(7));
}

/// Something once the keys of this shell's terminal are for `sleep` (proc(5): tpgid). Before it is that,
/// it is a copy of the shell, which may swallow a signal.
fn sleep_is_in_front(shell: i32) -> Option<()> {
    let stat = std::fs::read_to_string(format!("/proc/{shell}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let front = rest.split_whitespace().nth(5)?;
    let name = std::fs::read_to_string(format!("/proc/{front}/comm")).ok()?;
    (name.trim() == "sleep").then_some(())
}

/// Whether a process is there and no corpse.
fn lives(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')')
        .is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_shell_started_ends_with_the_one_who_watched() {
    let (director, machine, _dir) = start().await;
    let mut typist = Typist::open(&director, &machine).await.unwrap();
    // One in the foreground that ignores a hang-up, one in the background with a group of its own.
    typist
        .types("trap '' HUP; set -m; sleep 1000 & echo \"pid\"=$!=; sleep 1001\n")
        .await;
    // The echo of what was typed has a quote before the sign.
    typist.sees("pid=").await;
    typist.sees("=").await;
    let pid: i32 = typist.before.parse().unwrap();
    assert!(lives(pid));
    drop(typist);
    wait_for("the background job is gone", || (!lives(pid)).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_bounded_and_their_places_come_back() {
    let (director, machine, _dir) = start().await;
    let gateway = director.gateway();
    let watch = WatchVitals {
        origin: origin(1),
        interval_ms: 60_000,
    };
    let open = || gateway.open_session(&machine.name, machine.incarnation, &watch);
    let mut held = Vec::new();
    for _ in 0..SESSIONS_ON_MACHINE_MAX {
        held.push(open().await.unwrap());
    }
    let refused = open().await.unwrap_err();
    assert!(
        matches!(&refused, DeliveryError::Refused { message, .. } if message.contains("sessions are open")),
        "{refused}"
    );
    held.clear();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while open().await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "no place came back");
    }
    let old = WatchVitals {
        origin: origin(0),
        ..watch.clone()
    };
    // The machines of these tests have seen no epoch, so that even this one is served; the process
    // test has a real agent that refuses.
    assert!(
        gateway
            .open_session(&machine.name, machine.incarnation, &old)
            .await
            .is_ok()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_comes_at_its_interval_until_nobody_watches() {
    let (director, machine, _dir) = start().await;
    let watch = WatchVitals {
        origin: origin(1),
        // Shorter than allowed: the shortest is taken.
        interval_ms: 1,
    };
    let (input, mut output) = director
        .gateway()
        .open_session(&machine.name, machine.incarnation, &watch)
        .await
        .unwrap();
    let mut at = Vec::new();
    for _ in 0..3 {
        let frame = timeout(PATIENCE, output.next()).await.unwrap().unwrap();
        at.push(frame.body::<VitalsSample>().unwrap().at_unix_ms);
    }
    assert!(at[2] - at[0] >= 900, "{at:?}");
    drop((input, output));
}

/// A command under way.
struct Ran {
    input: Option<SessionInput>,
    output: SessionOutput,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Ran {
    async fn start(director: &Director, machine: &Machine, argv: &[&str]) -> Ran {
        let request = RunCommand {
            origin: origin(1),
            argv: argv.iter().map(|&word| word.to_owned()).collect(),
        };
        let gateway = director.gateway();
        let opened = gateway
            .open_session(&machine.name, machine.incarnation, &request)
            .await;
        let (input, output) = opened.unwrap();
        Ran {
            input: Some(input),
            output,
            stdout: Vec::new(),
            stderr: Vec::new(),
        }
    }

    /// Reads the next piece of output, or the end.
    async fn next(&mut self) -> Option<SessionEnd> {
        let frame = timeout(PATIENCE, self.output.next())
            .await
            .unwrap()
            .unwrap();
        if frame.kind == SessionEnd::KIND {
            return Some(frame.body().unwrap());
        }
        let Output { stream, bytes } = frame.body().unwrap();
        match stream {
            OutputStream::Stdout => self.stdout.extend(bytes),
            OutputStream::Stderr => self.stderr.extend(bytes),
        }
        None
    }

    async fn ends(&mut self) -> SessionEnd {
        loop {
            if let Some(end) = self.next().await {
                return end;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_reads_what_the_operator_sends_to_its_end() {
    let (director, machine, _dir) = start().await;
    // More than all buffers on the way, each byte of it twice: out and counted.
    let script = "tee /dev/stderr | wc -c; exit 3";
    let mut ran = Ran::start(&director, &machine, &["sh", "-c", script]).await;
    let sent: Vec<u8> = (0..3_000_000u32).map(|number| number as u8).collect();
    let mut input = ran.input.take().unwrap();
    let feeding = async {
        for piece in sent.chunks(60_000).chain([&[][..]]) {
            let bytes = piece.to_vec();
            let frame = Frame::of(&Input { bytes }).unwrap();
            input.send(&frame).await.unwrap();
        }
    };
    let ((), end) = tokio::join!(feeding, ran.ends());
    assert_eq!(end, SessionEnd::Exit(3));
    assert_eq!(ran.stdout, b"3000000\n");
    assert!(ran.stderr == sent, "{} bytes came back", ran.stderr.len());

    // One that reads nothing is not waited for, and hurts nobody.
    let mut ran = Ran::start(&director, &machine, &["true"]).await;
    let bytes = vec![7; 1000];
    let frame = Frame::of(&Input { bytes }).unwrap();
    // It may be over already.
    let _ = ran.input.as_mut().unwrap().send(&frame).await;
    assert_eq!(ran.ends().await, SessionEnd::Exit(0));

    // What is no program is told.
    let request = RunCommand {
        origin: origin(1),
        argv: vec!["/no/such/program".to_owned()],
    };
    let gateway = director.gateway();
    let opened = gateway
        .open_session(&machine.name, machine.incarnation, &request)
        .await;
    let error = opened.err().unwrap();
    assert!(error.to_string().contains("/no/such/program"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_ends_with_the_one_who_feeds_it() {
    let (director, machine, _dir) = start().await;
    let script = "sleep 1000 & echo $!; cat";
    let mut ran = Ran::start(&director, &machine, &["sh", "-c", script]).await;
    while !ran.stdout.ends_with(b"\n") {
        assert_eq!(ran.next().await, None);
    }
    let pid: i32 = String::from_utf8_lossy(&ran.stdout).trim().parse().unwrap();
    assert!(lives(pid));
    drop(ran);
    wait_for("what it started is gone", || (!lives(pid)).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_sent_whole() {
    let (director, machine, _dir) = start().await;
    let ask = |name: &str| SendSnapshot {
        origin: origin(1),
        name: name.to_owned(),
    };
    let gateway = director.gateway();
    let wanted = ask("00000000000000000007-00000007.db");
    let opened = gateway.open_session(&machine.name, machine.incarnation, &wanted);
    let (_input, mut output) = opened.await.unwrap();
    let mut bytes = Vec::new();
    let end = loop {
        let frame = timeout(PATIENCE, output.next()).await.unwrap().unwrap();
        match frame.kind {
            Output::KIND => bytes.extend(frame.body::<Output>().unwrap().bytes),
            _ => break frame.body::<SessionEnd>().unwrap(),
        }
    };
    assert_eq!(end, SessionEnd::Exit(0));
    assert!(
        bytes == crate::world::snapshot(),
        "{} bytes came",
        bytes.len()
    );
    // What there is not is told.
    let other = ask("00000000000000000008-00000007.db");
    let opened = gateway.open_session(&machine.name, machine.incarnation, &other);
    let error = opened.await.err().unwrap();
    assert!(error.to_string().contains("0008-00000007.db"), "{error}");
}
