//! `tilevae` with one more family: linking the crate is enough.

use downstream_vae as _;

fn main() -> std::process::ExitCode {
    tilevae_cli::main()
}
