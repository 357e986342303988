mod fenced;
mod producer;
mod watch;
