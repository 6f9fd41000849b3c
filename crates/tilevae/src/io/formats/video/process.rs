//! A bounded run of ffmpeg: its standard error is read while it runs, and it is killed when it makes no progress.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::super::super::IoError;
use super::said::Said;

/// What is started, and how long it may take for one thing.
#[derive(Debug, Clone)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    /// Arguments before all others.
    pub(super) arguments: Vec<OsString>,
    /// How long one frame, or the end, may be waited for.
    pub(super) patience: Duration,
}

impl Program {
    /// The `ffmpeg` in the `PATH`. Slow codecs look ahead over many frames, and take minutes for them.
    pub(super) fn installed() -> Self {
        Self { path: "ffmpeg".into(), arguments: Vec::new(), patience: Duration::from_mins(10) }
    }
}

/// The longest line that is kept of what a program says.
const LONGEST_LINE: usize = 1000;

/// A program that runs. Dropped, it is killed, and what it started, too.
pub(super) struct Process {
    file: PathBuf,
    child: Child,
    patience: Duration,
    watch: Arc<Watch>,
    said: Receiver<Said>,
}

#[derive(Default)]
struct Watch {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Since when it is waited for.
    since: Option<Instant>,
    is_over: bool,
    was_killed: bool,
}

impl Watch {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Process {
    /// Starts a program about `file`, which is `verb` (`read` or `written`). It takes input, or gives output.
    pub(super) fn start(program: &Program, file: &Path, verb: &'static str, arguments: &[&OsStr], takes_input: bool) -> Result<Self, IoError> {
        let mut command = Command::new(&program.path);
        command.args(&program.arguments).args(arguments).env("AV_LOG_FORCE_NOCOLOR", "1").env_remove("AV_LOG_FORCE_COLOR");
        let [input, output] = if takes_input { [Stdio::piped(), Stdio::null()] } else { [Stdio::null(), Stdio::piped()] };
        command.stdin(input).stdout(output).stderr(Stdio::piped());
        // Of its own, so that Ctrl-C at the terminal ends this program in its way and not ffmpeg beneath it.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().map_err(|source| match source.kind() {
            ErrorKind::NotFound => IoError::NoFfmpeg { path: file.to_owned(), verb },
            _ => IoError::Ffmpeg { path: file.to_owned(), message: format!("{} cannot be started: {source}", program.path.display()) },
        })?;
        let (sender, said) = channel();
        if let Some(stderr) = child.stderr.take() {
            std::thread::spawn(move || drop(sender.send(listen(stderr))));
        }
        let watch = Arc::new(Watch::default());
        let process = Self { file: file.to_owned(), child, patience: program.patience, watch, said };
        process.guard();
        Ok(process)
    }

    /// Kills the program when it is waited for too long.
    fn guard(&self) {
        let (watch, patience, group) = (self.watch.clone(), self.patience, Group::of(&self.child));
        std::thread::spawn(move || {
            let mut state = watch.state();
            while !state.is_over {
                let left = state.since.map_or(patience, |since| patience.saturating_sub(since.elapsed()));
                if left.is_zero() {
                    // Not waited for yet, so its number is its own.
                    group.kill();
                    state.was_killed = true;
                    return;
                }
                state = watch.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            }
        });
    }

    pub(super) fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    pub(super) fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    pub(super) fn waiting(&self) -> Waiting {
        Waiting(self.watch.clone())
    }

    /// How the program ended, and what it said.
    pub(super) fn end(&mut self) -> Result<(ExitStatus, Said), IoError> {
        let file = self.file.clone();
        let failed = |message: String| IoError::Ffmpeg { path: file.clone(), message };
        let hung = format!("it did not go on for {} s and was ended", self.patience.as_secs_f32());
        // Whatever it still has to write is not wanted, and nothing more comes.
        drop(self.child.stdin.take());
        drop(self.child.stdout.take());
        let begun = Instant::now();
        let mut pause = Duration::from_millis(1);
        let status = loop {
            // The guard may not kill a number that is no longer the child's.
            let mut state = self.watch.state();
            match self.child.try_wait() {
                Ok(Some(status)) => {
                    state.is_over = true;
                    break Some(status);
                }
                Ok(None) if begun.elapsed() < self.patience && !state.was_killed => {}
                Ok(None) => break None,
                Err(error) => return Err(failed(error.to_string())),
            }
            drop(state);
            std::thread::sleep(pause);
            pause = (2 * pause).min(Duration::from_millis(50));
        };
        self.watch.changed.notify_all();
        let Some(status) = status else {
            self.kill();
            return Err(failed(hung));
        };
        if self.watch.state().was_killed {
            return Err(failed(hung));
        }
        // Something that it started may still hold its standard error.
        let said = self.said.recv_timeout(Duration::from_secs(5)).unwrap_or_default();
        Ok((status, said))
    }

    fn kill(&mut self) {
        let mut state = self.watch.state();
        if !state.is_over {
            Group::of(&self.child).kill();
            let _ = self.child.kill();
            let _ = self.child.wait();
            state.is_over = true;
        }
        drop(state);
        self.watch.changed.notify_all();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Tells the watchdog that the caller waits for the program.
#[derive(Clone)]
pub(super) struct Waiting(Arc<Watch>);

impl Waiting {
    /// Does something that waits for the program.
    pub(super) fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        self.0.state().since = Some(Instant::now());
        self.0.changed.notify_all();
        let done = work();
        self.0.state().since = None;
        done
    }
}

/// A program and what it started.
#[derive(Clone, Copy)]
struct Group {
    #[cfg(unix)]
    id: rustix::process::Pid,
}

impl Group {
    #[cfg(unix)]
    fn of(child: &Child) -> Self {
        Self { id: rustix::process::Pid::from_child(child) }
    }

    #[cfg(unix)]
    fn kill(self) {
        let _ = rustix::process::kill_process_group(self.id, rustix::process::Signal::KILL);
    }

    #[cfg(not(unix))]
    fn of(_: &Child) -> Self {
        Self {}
    }

    #[cfg(not(unix))]
    fn kill(self) {}
}

/// Reads all that a program says, so that it never waits for its reader, and keeps what matters.
fn listen(stderr: impl Read) -> Said {
    let mut said = Said::default();
    let mut stderr = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        let (used, is_end) = match stderr.fill_buf() {
            Ok([]) => break,
            Ok(bytes) => {
                let end = bytes.iter().position(|&byte| byte == b'\n' || byte == b'\r');
                let part = &bytes[..end.unwrap_or(bytes.len())];
                line.extend_from_slice(&part[..part.len().min(LONGEST_LINE - line.len())]);
                (end.map_or(bytes.len(), |end| end + 1), end.is_some())
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        stderr.consume(used);
        if is_end {
            said.take(&String::from_utf8_lossy(&line));
            line.clear();
        }
    }
    said.take(&String::from_utf8_lossy(&line));
    said
}
