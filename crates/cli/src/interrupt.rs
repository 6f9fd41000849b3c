//! Signals that end the program. Those that were ignored when it began stay ignored, as `nohup` and shells want it.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tilevae::{Error, Stop, io};

use crate::failure::{INTERRUPTED, print_interrupted, print_stopping};

static STOP: LazyLock<Stop> = LazyLock::new(Stop::default);

/// The state in which a signal arrives.
static STATE: AtomicU8 = AtomicU8::new(NO_RUN);

const NO_RUN: u8 = 0;
const RUNNING: u8 = 1;
const STOPPING: u8 = 2;
const ENDING: u8 = 3;

/// Stops the run when a signal arrives.
pub(crate) fn stop() -> Stop {
    STOP.clone()
}

/// Runs tiles. Meanwhile a signal only stops the run, which is then an error even if its last tile was finished.
pub(crate) fn during<T>(run: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    let change = |from, to| STATE.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst);
    if change(NO_RUN, RUNNING).is_ok() {
        let answer = run();
        match change(RUNNING, NO_RUN) {
            Ok(_) => return answer,
            Err(STOPPING) => return Err(Error::stopped()),
            Err(_) => {}
        }
    }
    wait_for_end()
}

/// Does not return when a signal is just ending the program.
pub(crate) fn let_end() {
    if STATE.load(Ordering::SeqCst) == ENDING {
        wait_for_end();
    }
}

fn wait_for_end() -> ! {
    loop {
        thread::park();
    }
}

fn on_signal() {
    if STATE.compare_exchange(RUNNING, STOPPING, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
        print_from_thread(print_stopping);
        STOP.stop();
        return;
    }
    let stopping = STATE.swap(ENDING, Ordering::SeqCst) == STOPPING;
    io::remove_pending();
    print_from_thread(move || print_interrupted(stopping));
    exit();
}

/// Prints to standard error from a thread, so that a blocked reader does not block signals.
fn print_from_thread(text: impl FnOnce() + Send + 'static) {
    let (sender, printed) = mpsc::channel();
    let spawned = thread::Builder::new().spawn(move || {
        text();
        sender.send(())
    });
    // Without a thread nothing is said, and the program ends all the same.
    if spawned.is_ok() {
        let _ = printed.recv_timeout(Duration::from_millis(200));
    }
}

/// Ends runs at the first Ctrl-C (or request to terminate), and the program at the second; without a run, at the first. Nothing half-written is left.
#[cfg(unix)]
pub(crate) fn listen() {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;

    let signals = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|&signal| !is_ignored(signal));
    let listening = Signals::new(signals).and_then(|mut signals| {
        let listen = move || signals.forever().for_each(|_| on_signal());
        thread::Builder::new().name("signals".to_owned()).spawn(listen)
    });
    if let Err(error) = listening {
        tracing::warn!("Ctrl-C may leave temporary files behind: {error}");
    }
}

#[cfg(unix)]
#[expect(unsafe_code, reason = "sigaction is a C function")]
fn is_ignored(signal: std::ffi::c_int) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action sigaction only writes the present one, to a place of its type, of which all bytes are valid when they are zero.
    unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) == 0 && action.assume_init().sa_sigaction == libc::SIG_IGN }
}

#[cfg(unix)]
fn exit() -> ! {
    // Without destructors: threads are still at work.
    signal_hook::low_level::exit(i32::from(INTERRUPTED))
}

#[cfg(not(unix))]
pub(crate) fn listen() {
    if let Err(error) = ctrlc::set_handler(on_signal) {
        tracing::warn!("Ctrl-C may leave temporary files behind: {error}");
    }
}

#[cfg(not(unix))]
fn exit() -> ! {
    std::process::exit(i32::from(INTERRUPTED))
}
