use std::sync::LazyLock;

use tilevae::Stop;

/// The exit code of a program that a signal ended, as shells count it.
pub(crate) const INTERRUPTED: u8 = 130;

static STOP: LazyLock<Stop> = LazyLock::new(Stop::default);

/// The switch that Ctrl-C throws.
pub(crate) fn stop() -> Stop {
    STOP.clone()
}

/// Ends runs at the first Ctrl-C (or request to terminate) once the tiles that run are finished, so that nothing half-written is left; and the program
/// at the second.
pub(crate) fn listen() {
    let heard = ctrlc::set_handler(|| {
        if STOP.is_stopped() {
            std::process::exit(i32::from(INTERRUPTED));
        }
        STOP.stop();
    });
    if let Err(error) = heard {
        tracing::warn!("Ctrl-C will leave temporary files behind: {error}");
    }
}
