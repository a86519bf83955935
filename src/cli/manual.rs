//! `railgate completions` and `railgate man`, made of the same definitions as `--help`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap_complete::aot::{Generator, Shell};

use super::output::print_error;

#[derive(Debug, clap::Args)]
pub(super) struct CompletionsOptions {
    /// The shell that will read them
    shell: CompletedShell,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum CompletedShell {
    Bash,
    Zsh,
    Fish,
}

#[derive(Debug, clap::Args)]
pub(super) struct ManOptions {
    /// Write a page for each command into this directory, such as `/usr/local/share/man/man1`. By default
    /// the page of `railgate` itself is printed
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
}

pub(super) fn completions(options: &CompletionsOptions, mut command: clap::Command) -> ExitCode {
    let shell = match options.shell {
        CompletedShell::Bash => Shell::Bash,
        CompletedShell::Zsh => Shell::Zsh,
        CompletedShell::Fish => Shell::Fish,
    };
    command.set_bin_name("railgate");
    command.build();
    let mut script = Vec::new();
    match shell.try_generate(&command, &mut script) {
        Ok(()) => print(&script),
        Err(error) => fail(&format!("cannot make the completions: {error}")),
    }
}

pub(super) fn man(options: &ManOptions, command: clap::Command) -> ExitCode {
    // clap would give every page its own `help`.
    let command = command.disable_help_subcommand(true);
    let Some(directory) = &options.directory else {
        let mut page = Vec::new();
        return match clap_mangen::Man::new(command).render(&mut page) {
            Ok(()) => print(&page),
            Err(error) => fail(&format!("cannot make the page: {error}")),
        };
    };
    match write_pages(command, directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("cannot write the pages to {}: {error}", directory.display())),
    }
}

fn write_pages(command: clap::Command, directory: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    clap_mangen::generate_to(command, directory)
}

/// A closed pipe is no failure: the reader has what it wanted.
fn print(text: &[u8]) -> ExitCode {
    let _ = std::io::stdout().lock().write_all(text);
    ExitCode::SUCCESS
}

fn fail(why: &str) -> ExitCode {
    print_error(why);
    ExitCode::FAILURE
}
