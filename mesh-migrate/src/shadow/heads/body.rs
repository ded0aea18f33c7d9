//! Chunked bodies, passed over (RFC 9112, 7.1).

/// Where in a chunked body the next byte is.
#[derive(Debug)]
pub(super) struct Chunks {
    at: At,
    /// Bytes of the line, or of all lines of the trailer.
    line: usize,
}

#[derive(Debug)]
enum At {
    /// Digits of a size.
    Size(u64),
    /// The rest of the line of a size.
    Extension(u64),
    Data(u64),
    /// The end of line after data.
    AfterData,
    /// A line of the trailer, which has begun with something or not.
    Trailer {
        is_blank: bool,
    },
}

impl Default for Chunks {
    fn default() -> Self {
        Self { at: At::Size(0), line: 0 }
    }
}

impl Chunks {
    /// Takes what belongs to the body off `rest`; whether it is all. Lines longer than
    /// `most` and sizes that are none are errors.
    pub(super) fn skip(&mut self, rest: &mut &[u8], most: usize) -> Result<bool, ()> {
        while let Some((&byte, after)) = rest.split_first() {
            if let At::Data(left) = &mut self.at {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                *left -= taken as u64;
                *rest = &rest[taken..];
                if *left == 0 {
                    self.at = At::AfterData;
                }
                continue;
            }
            *rest = after;
            if self.line >= most {
                return Err(());
            }
            self.line += 1;
            if self.step(byte)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn step(&mut self, byte: u8) -> Result<bool, ()> {
        match (&mut self.at, byte) {
            (At::Size(_), b'\r' | b'\n' | b';' | b' ' | b'\t') if self.line == 1 => return Err(()),
            (At::Size(size) | At::Extension(size), b'\n') => {
                self.line = 0;
                self.at = match *size {
                    0 => At::Trailer { is_blank: true },
                    size => At::Data(size),
                };
            }
            (At::Size(size), b'\r' | b';' | b' ' | b'\t') => self.at = At::Extension(*size),
            (At::Size(size), byte) => {
                let digit = char::from(byte).to_digit(16).ok_or(())?;
                let larger = size.checked_mul(16).and_then(|size| size.checked_add(digit.into()));
                *size = larger.ok_or(())?;
            }
            (At::AfterData, b'\n') => {
                self.line = 0;
                self.at = At::Size(0);
            }
            (At::AfterData, b'\r') if self.line == 1 => {}
            (At::AfterData, _) => return Err(()),
            (At::Trailer { is_blank: true }, b'\n') => return Ok(true),
            (At::Trailer { is_blank }, b'\n') => *is_blank = true,
            (At::Trailer { is_blank }, byte) if byte != b'\r' => *is_blank = false,
            (At::Extension(_) | At::Data(_) | At::Trailer { .. }, _) => {}
        }
        Ok(false)
    }
}
