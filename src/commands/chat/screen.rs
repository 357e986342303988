//! Input and output of `eshaar chat`. At a terminal: a prompt with line editing, and text that is printed above it, so a
//! half-typed line survives what comes in. Otherwise: lines of standard input, lines of standard output.
//!
//! Two threads serve the prompt. The reader is inside rustyline, which puts the terminal into raw mode for one line at a time
//! and restores it when it returns. The printer hands text to the reader and waits for it, so that the conversation never
//! does. [`Screen::close`] ends both, and has the terminal restored before the command says why it ended.

use std::fmt::Arguments;
use std::io::{self, IsTerminal as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::{Signal, raise};
use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::Validator;
use rustyline::{Config, Context, Editor, ExternalPrinter, Helper};
use tokio::signal::unix::{self, SignalKind};
use tokio::sync::{mpsc, oneshot};

use crate::output::{OutputError, noteln, outln};

/// A line at the prompt looks as it will in the history: what was typed is not printed again.
const PROMPT: &str = "you: ";
/// Typed lines that wait to be sent.
const TYPED_LINES: usize = 16;
/// Lines that wait to be printed above the prompt.
const PRINTED_LINES: usize = 1_000;
/// Tries to wake the reader, and the wait for each.
const WAKE_UPS: (u32, Duration) = (100, Duration::from_millis(20));
/// The end of bracketed paste, which rustyline begins.
const PASTE_OFF: &str = "\x1b[?2004l";

/// The terminal, or what stands in its place.
pub struct Screen {
    output: Output,
    lines: mpsc::Receiver<io::Result<String>>,
    prompt: Option<Prompt>,
}

/// Where lines for people go.
#[derive(Clone)]
pub enum Output {
    /// Nowhere: standard output is for frames.
    Json,
    /// Standard output.
    Lines,
    /// Above the prompt. `None` is the last.
    Prompt(SyncSender<Option<String>>),
}

/// How the user ends the command at once.
#[derive(Debug)]
pub enum Stop {
    /// Ctrl-C on an empty line, or SIGINT.
    Interrupted,
    /// SIGTERM.
    Terminated,
}

/// Tells when the user ends the command at once.
pub struct Stops(Option<(oneshot::Receiver<()>, unix::Signal, unix::Signal)>);

impl Stops {
    /// Waits for it. Without a prompt that is never: signals end the process.
    pub async fn next(self) -> Stop {
        let Some((interrupted, mut sigint, mut sigterm)) = self.0 else { return std::future::pending().await };
        let interrupted = async {
            // A reader that ended otherwise has said so by the end of its lines.
            if interrupted.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = interrupted => Stop::Interrupted,
            Some(()) = sigint.recv() => Stop::Interrupted,
            Some(()) = sigterm.recv() => Stop::Terminated,
        }
    }
}

impl Output {
    /// Before there is a prompt.
    pub const fn new(is_json: bool) -> Self {
        if is_json { Self::Json } else { Self::Lines }
    }

    /// Shows a line to people.
    pub fn show(&self, line: Arguments<'_>) -> Result<(), OutputError> {
        match self {
            Self::Json => Ok(()),
            Self::Lines => outln!("{line}"),
            Self::Prompt(lines) => match lines.try_send(Some(format!("{line}\n"))) {
                Ok(()) | Err(TrySendError::Full(None)) => Ok(()),
                Err(TrySendError::Full(Some(line))) => outln!("{}", line.trim_end()),
                Err(TrySendError::Disconnected(_)) => Err(OutputError(io::ErrorKind::BrokenPipe.into())),
            },
        }
    }

    /// Shows what is no part of the conversation.
    pub fn note(&self, text: &str) {
        match self {
            Self::Json | Self::Lines => noteln!("{text}"),
            // A terminal that is gone has nobody to tell.
            Self::Prompt(_) => drop(self.show(format_args!("{text}"))),
        }
    }

    /// Returns true if what the user typed stays on the screen as it was typed.
    pub const fn shows_typed_lines(&self) -> bool {
        matches!(self, Self::Prompt(_))
    }
}

impl Screen {
    /// Begins to read. There is a prompt where standard input and standard output are a terminal that rustyline can edit
    /// lines on (`TERM=dumb` is none).
    pub fn open(output: Output) -> anyhow::Result<(Self, Stops)> {
        let is_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
        if let Output::Lines = output
            && is_terminal
            && let Some(opened) = Self::with_prompt()?
        {
            return Ok(opened);
        }
        Ok((Self { output, lines: read_lines(), prompt: None }, Stops(None)))
    }

    fn with_prompt() -> anyhow::Result<Option<(Self, Stops)>> {
        let mut editor =
            Editor::<Watch, DefaultHistory>::with_config(Config::builder().auto_add_history(true).build())?;
        let Ok(above) = editor.create_external_printer() else { return Ok(None) };
        // From here on SIGINT ends no process: it wakes the reader.
        let signals = (unix::signal(SignalKind::interrupt())?, unix::signal(SignalKind::terminate())?);
        let (prompt, input, output) = Prompt::start(editor, above)?;
        let stops = Stops(Some((input.interrupted, signals.0, signals.1)));
        Ok(Some((Self { output: Output::Prompt(output), lines: input.lines, prompt: Some(prompt) }, stops)))
    }

    /// Where lines for people go.
    pub const fn output(&self) -> &Output {
        &self.output
    }

    /// The next line that was typed; none at the end. Cancel-safe.
    pub async fn line(&mut self) -> Option<io::Result<String>> {
        self.lines.recv().await
    }

    /// Ends the prompt: prints what waits, and restores the terminal.
    pub fn close(&mut self) {
        // A reader that has a line to hand over does not wait for anybody to take it.
        self.lines.close();
        while self.lines.try_recv().is_ok() {}
        self.prompt = None;
    }
}

/// The lines of standard input. A thread of its own reads them, for which the end of the command does not wait.
fn read_lines() -> mpsc::Receiver<io::Result<String>> {
    let (typed, lines) = mpsc::channel(TYPED_LINES);
    std::thread::spawn(move || {
        for line in io::stdin().lines() {
            if typed.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Input from the prompt.
struct Input {
    lines: mpsc::Receiver<io::Result<String>>,
    interrupted: oneshot::Receiver<()>,
}

/// The two threads of a prompt. Dropping it ends them and restores the terminal.
struct Prompt {
    is_closing: Arc<AtomicBool>,
    /// Disconnected once the reader has ended.
    reader_ended: Receiver<()>,
    printed: SyncSender<Option<String>>,
    printer: Option<JoinHandle<()>>,
    original: Termios,
}

impl Prompt {
    fn start(
        mut editor: Editor<Watch, DefaultHistory>,
        above: impl ExternalPrinter + Send + 'static,
    ) -> io::Result<(Self, Input, SyncSender<Option<String>>)> {
        let original = tcgetattr(io::stdin())?;
        let is_closing = Arc::new(AtomicBool::new(false));
        let (typed, lines) = mpsc::channel(TYPED_LINES);
        let (interrupt, interrupted) = oneshot::channel();
        let (alive, reader_ended) = channel::<()>();
        let closing = Arc::clone(&is_closing);
        std::thread::Builder::new().name("prompt".to_owned()).spawn(move || {
            let _alive = alive;
            editor.set_helper(Some(Watch::default()));
            read(&mut editor, &closing, &typed, interrupt);
        })?;
        let (printed, lines_above) = sync_channel(PRINTED_LINES);
        let printer =
            std::thread::Builder::new().name("printer".to_owned()).spawn(move || print(above, &lines_above))?;
        let prompt = Self { is_closing, reader_ended, printed: printed.clone(), printer: Some(printer), original };
        Ok((prompt, Input { lines, interrupted }, printed))
    }

    /// Wakes the reader until it has ended. rustyline takes SIGINT for the interrupt key while it reads; a signal that comes
    /// before it does, or ends a search only, is followed by another.
    fn end_reader(&self) -> Result<(), RecvTimeoutError> {
        self.is_closing.store(true, Ordering::SeqCst);
        let (tries, wait) = WAKE_UPS;
        for _ in 0..tries {
            let _ = raise(Signal::SIGINT);
            match self.reader_ended.recv_timeout(wait) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
        Err(RecvTimeoutError::Timeout)
    }
}

impl Drop for Prompt {
    fn drop(&mut self) {
        if self.end_reader().is_err() {
            let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.original);
            let _ = outln!("{PASTE_OFF}");
            return;
        }
        // With the reader gone, the printer waits for nobody.
        let _ = self.printed.send(None);
        if let Some(printer) = self.printer.take() {
            let _ = printer.join();
        }
    }
}

/// Reads lines until their end. Ctrl-C clears a line, and on an empty one ends the command.
fn read(
    editor: &mut Editor<Watch, DefaultHistory>,
    is_closing: &AtomicBool,
    typed: &mpsc::Sender<io::Result<String>>,
    interrupt: oneshot::Sender<()>,
) {
    while !is_closing.load(Ordering::SeqCst) {
        let line = match editor.readline(PROMPT) {
            Ok(line) => Ok(line),
            Err(ReadlineError::Interrupted) if editor.helper().is_none_or(Watch::is_empty) => {
                // Where the command ends by itself nobody listens.
                let _ = interrupt.send(());
                return;
            }
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => return,
            Err(error) => Err(io::Error::other(error)),
        };
        let is_last = line.is_err();
        if typed.blocking_send(line).is_err() || is_last {
            return;
        }
    }
}

/// Prints lines above the prompt while there is one, and as they are when it is gone.
fn print(mut above: impl ExternalPrinter, lines: &Receiver<Option<String>>) {
    while let Ok(Some(line)) = lines.recv() {
        // The reader ended while this line waited for it.
        if above.print(line.clone()).is_err() && outln!("{}", line.trim_end()).is_err() {
            return;
        }
    }
}

/// Remembers that a line has text: rustyline does not give an interrupted line back.
#[derive(Default)]
struct Watch {
    has_text: AtomicBool,
}

impl Watch {
    fn is_empty(&self) -> bool {
        !self.has_text.load(Ordering::Relaxed)
    }
}

impl Hinter for Watch {
    type Hint = String;

    fn hint(&self, line: &str, _: usize, _: &Context<'_>) -> Option<String> {
        self.has_text.store(!line.is_empty(), Ordering::Relaxed);
        None
    }
}

impl Completer for Watch {
    type Candidate = String;
}

impl Highlighter for Watch {}
impl Validator for Watch {}
impl Helper for Watch {}
