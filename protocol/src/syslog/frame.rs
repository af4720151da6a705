//! Cutting a TCP byte stream into syslog messages.
//!
//! Two framings exist and may alternate on one connection (RFC 6587 §3.4): a decimal count before
//! the message, or a line feed after it. A frame that begins with a digit 1-9, and goes on with a
//! short number and a space, is counted; every other one ends at its line feed.

/// Takes bytes as they come, gives messages as they end.
#[derive(Debug, Default)]
pub struct Deframer {
    buffer: Vec<u8>,
    /// What is before in `buffer` was given already.
    start: usize,
    /// How far behind `start` it was already searched for a line feed.
    searched: usize,
    /// The current line was cut: what follows up to its line feed is the rest of it.
    in_cut_line: bool,
}

/// One message, as framed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Frame {
    /// The message, without count or terminating line feed.
    pub bytes: Vec<u8>,
    /// It was longer than [`MESSAGE_LEN_MAX`]; the next frame goes on with it.
    pub is_cut: bool,
}

impl Deframer {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes received bytes; call [`Deframer::poll_frame`] until `None` afterwards.
    pub fn handle_bytes(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns the next whole message. What was given is dropped when there is no further one: so however short messages
    /// are, each byte is moved once.
    pub fn poll_frame(&mut self) -> Option<Frame> {
        let frame = self.next_frame();
        if frame.is_none() && self.start > 0 {
            self.buffer = self.rest().to_vec();
            self.start = 0;
        }
        frame
    }

    fn next_frame(&mut self) -> Option<Frame> {
        if !self.in_cut_line {
            match self.count() {
                Count::Counted { digits, len } => {
                    //= https://www.rfc-editor.org/rfc/rfc6587#section-3.4.1
                    //# SYSLOG-FRAME = MSG-LEN SP SYSLOG-MSG
                    let start = digits + 1;
                    if self.pending() < start + len {
                        return None;
                    }
                    let bytes = self.take(start + len);
                    let bytes = bytes.get(start..).unwrap_or_default().to_vec();
                    return Some(Frame {
                        bytes,
                        is_cut: false,
                    });
                }
                Count::Unknown => return None,
                Count::NotCounted => {}
            }
        }
        self.poll_line()
    }

    /// Returns what is left when the connection ends: a message without its line feed.
    pub fn finish(&mut self) -> Option<Frame> {
        let bytes = self.take(self.pending());
        self.buffer = Vec::new();
        self.start = 0;
        self.in_cut_line = false;
        (!bytes.is_empty()).then_some(Frame {
            bytes,
            is_cut: false,
        })
    }

    /// Bytes held back for an unfinished message.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.rest().len()
    }

    fn rest(&self) -> &[u8] {
        self.buffer.get(self.start..).unwrap_or_default()
    }

    //= https://www.rfc-editor.org/rfc/rfc6587#section-3.4.2
    //# ... a syslog message is terminated by a trailer character. The usual one is LF.
    fn poll_line(&mut self) -> Option<Frame> {
        let unsearched = self.rest().get(self.searched..).unwrap_or_default();
        let end = unsearched.iter().position(|&byte| byte == b'\n');
        let end = end.map(|at| self.searched + at);
        if let Some(end) = end.filter(|&end| end <= MESSAGE_LEN_MAX) {
            let mut bytes = self.take(end + 1);
            bytes.pop();
            self.in_cut_line = false;
            return Some(Frame {
                bytes,
                is_cut: false,
            });
        }
        if self.pending() > MESSAGE_LEN_MAX {
            let bytes = self.take(MESSAGE_LEN_MAX);
            self.in_cut_line = true;
            return Some(Frame {
                bytes,
                is_cut: true,
            });
        }
        self.searched = self.pending();
        None
    }

    fn count(&self) -> Count {
        let mut len = 0_usize;
        for (digits, byte) in self.rest().iter().take(COUNT_DIGITS_MAX + 1).enumerate() {
            match byte {
                b'0' if digits == 0 => return Count::NotCounted,
                b'0'..=b'9' if digits < COUNT_DIGITS_MAX => {
                    len = len * 10 + usize::from(byte - b'0');
                }
                b' ' if digits > 0 && (1..=MESSAGE_LEN_MAX).contains(&len) => {
                    return self.counted_if_plausible(digits, len);
                }
                _ => return Count::NotCounted,
            }
        }
        Count::Unknown
    }

    /// Meraki writes `1 948136486.721 HOST …` in LF framing: a count is followed by a PRI, or by
    /// something that is not another number.
    fn counted_if_plausible(&self, digits: usize, len: usize) -> Count {
        match self.rest().get(digits + 1) {
            None => Count::Unknown,
            Some(byte) if byte.is_ascii_digit() => Count::NotCounted,
            Some(_) => Count::Counted { digits, len },
        }
    }

    fn take(&mut self, len: usize) -> Vec<u8> {
        self.searched = 0;
        let taken = self.rest().get(..len).unwrap_or_default().to_vec();
        self.start += taken.len();
        taken
    }
}

enum Count {
    Counted {
        digits: usize,
        len: usize,
    },
    NotCounted,
    /// More bytes are needed to tell.
    Unknown,
}

/// Longest message, in bytes: the longest entry.
pub const MESSAGE_LEN_MAX: usize = crate::entry::ENTRY_LEN_MAX;
const COUNT_DIGITS_MAX: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_and_line_frames_may_alternate_and_arrive_in_any_pieces() {
        let wire = b"5 <1>ab<2>line one\n7 <3>a\nb\n<4>two\n1 948136486.7 MR24 flows\n";
        let expected = [
            &b"<1>ab"[..],
            b"<2>line one",
            b"<3>a\nb\n",
            b"<4>two",
            b"1 948136486.7 MR24 flows",
        ];
        for piece in 1..wire.len() {
            let mut deframer = Deframer::new();
            let mut frames = Vec::new();
            for bytes in wire.chunks(piece) {
                deframer.handle_bytes(bytes);
                while let Some(frame) = deframer.poll_frame() {
                    frames.push(frame.bytes);
                }
            }
            assert_eq!(frames, expected, "in pieces of {piece}");
            assert_eq!(deframer.pending(), 0);
        }
    }

    #[test]
    fn an_endless_line_is_cut_and_memory_stays_bounded() {
        let mut deframer = Deframer::new();
        let mut cut = 0;
        for _ in 0..1000 {
            deframer.handle_bytes(&[b'x'; 4096]);
            while let Some(frame) = deframer.poll_frame() {
                assert!(frame.is_cut);
                cut += frame.bytes.len();
            }
            assert!(deframer.pending() <= MESSAGE_LEN_MAX);
        }
        deframer.handle_bytes(b"end\n<1>next\n");
        let last = deframer.poll_frame().unwrap();
        assert!(!last.is_cut);
        assert_eq!(cut + last.bytes.len(), 1000 * 4096 + 3);
        assert_eq!(deframer.poll_frame().unwrap().bytes, b"<1>next");
    }

    /// A flood of line feeds took 1.8 s of a processor for each MiB.
    #[test]
    fn short_messages_cost_as_much_as_their_bytes_and_leave_no_memory() {
        let mut deframer = Deframer::new();
        let flood = vec![b'\n'; 64 << 10];
        let mut given = 0;
        // Were each message to move what is behind it, these would be 512 GiB.
        for _ in 0..256 {
            deframer.handle_bytes(&flood);
            while let Some(frame) = deframer.poll_frame() {
                assert!(frame.bytes.is_empty());
                given += 1;
            }
            assert!(deframer.buffer.capacity() == 0);
        }
        assert_eq!(given, 16 << 20);
        // What is unfinished is held, and no more.
        deframer.handle_bytes(&[&flood[..], b"begin"].concat());
        while deframer.poll_frame().is_some() {}
        assert_eq!((deframer.pending(), deframer.buffer.len()), (5, 5));
        assert!(deframer.buffer.capacity() < 64);
        assert_eq!(deframer.finish().unwrap().bytes, b"begin");
    }

    #[test]
    fn a_count_past_the_bound_is_text() {
        let mut deframer = Deframer::new();
        deframer.handle_bytes(b"999999 <1>x\n");
        assert_eq!(deframer.poll_frame().unwrap().bytes, b"999999 <1>x");
    }

    #[test]
    fn the_rest_of_a_closed_connection_is_a_message() {
        let mut deframer = Deframer::new();
        deframer.handle_bytes(b"<1>no newline");
        assert_eq!(deframer.poll_frame(), None);
        assert_eq!(deframer.finish().unwrap().bytes, b"<1>no newline");
        assert_eq!(deframer.finish(), None);
    }
}
