// PNG files of gray levels. A canvas could only write colors, which image programs do not take for
// class ids.

// ids: Uint8Array or Uint16Array (height, width). Returns a Blob, of 8 or 16 bits.
export async function grayPng(ids, height, width) {
  const bytes = ids.BYTES_PER_ELEMENT;
  const line = 1 + width * bytes; // each begins with the number of its filter, 0: none
  const rows = new Uint8Array(height * line);
  const view = new DataView(rows.buffer);
  for (let y = 0; y < height; y++) {
    const start = y * line + 1;
    const row = ids.subarray(y * width, (y + 1) * width);
    if (bytes === 1) rows.set(row, start);
    else row.forEach((id, x) => view.setUint16(start + 2 * x, id));
  }
  const packed = new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate"));
  const head = new Uint8Array(13);
  new DataView(head.buffer).setUint32(0, width);
  new DataView(head.buffer).setUint32(4, height);
  head[8] = 8 * bytes; // bits; the zeros that follow: gray, deflate, plain filters, not interlaced
  const parts = [
    Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a),
    chunk("IHDR", head),
    chunk("IDAT", new Uint8Array(await new Response(packed).arrayBuffer())),
    chunk("IEND", new Uint8Array()),
  ];
  return new Blob(parts, { type: "image/png" });
}

function chunk(type, content) {
  const bytes = new Uint8Array(content.length + 12);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, content.length);
  bytes.set(new TextEncoder().encode(type), 4);
  bytes.set(content, 8);
  view.setUint32(content.length + 8, crc(bytes.subarray(4, content.length + 8)));
  return bytes;
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? (byte >>> 1) ^ 0xedb88320 : byte >>> 1;
  return byte;
});

function crc(bytes) {
  let value = ~0;
  for (const byte of bytes) value = (value >>> 8) ^ CRC_TABLE[(value ^ byte) & 255];
  return ~value >>> 0;
}
