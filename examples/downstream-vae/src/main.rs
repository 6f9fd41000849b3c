//! `tilevae` with one more family, grid and blend policy, for which linking the crate is enough, and with an executor of its own.

use downstream_vae::Zigzag;
use tilevae_cli::{Program, main_with};

fn main() -> std::process::ExitCode {
    main_with(Program::default().with_pipeline(|pipeline| pipeline.with_executor(Box::new(Zigzag))))
}
