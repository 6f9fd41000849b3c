//! The `tilevae` program. A program with more VAE families is the same three lines and `use my_family as _;`.

fn main() -> std::process::ExitCode {
    tilevae_cli::main()
}
