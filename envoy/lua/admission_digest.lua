-- Reads the digest of the ids that Admission must be asked about. controller/xds/digest.py writes it and describes the format.
-- tests/unit/digest_vectors.json checks that both agree.
--
-- The metadata of the virtual host has the number of buckets under `buckets` and each bucket under `bucket <number>`. It is read once
-- for each version of the digest, because Envoy copies all of it on each access.

local CHARACTERS = 342
local BITS = 6 * CHARACTERS
local ROUNDS = 4
local ZERO = 48 -- "0"

local band, bxor, lshift, rshift, tobit = bit.band, bit.bxor, bit.lshift, bit.rshift, bit.tobit
local floor, byte = math.floor, string.byte

local admission_digest = {}

-- Returns the 32-bit FNV-1a hash. Its prime is 2^24 + 403: the product would not fit a number, but the two partial products do.
function admission_digest.hash(text)
  local value = tobit(0x811C9DC5)
  for index = 1, #text do
    value = bxor(value, byte(text, index))
    value = tobit(lshift(value, 24) + value * 403)
  end
  return value % 4294967296
end

local known = {}

-- Returns the digest of a version. `read` returns the metadata that contains it.
function admission_digest.digest(version, read)
  if known.version ~= version then
    local metadata = read()
    local digest = { version = version, buckets = metadata:get("buckets") }
    for number = 0, digest.buckets - 1 do
      digest[number] = metadata:get("bucket " .. number)
    end
    known = digest
  end
  return known
end

-- Returns whether a digest contains an id. It may also return true for an id that was not added.
function admission_digest.contains(digest, id)
  local hash = admission_digest.hash(id)
  local rest = floor(hash / BITS)
  local first, step = hash % BITS, rest % (BITS - 1) + 1
  local bucket = digest[floor(rest / (BITS - 1)) % digest.buckets]
  for turn = 0, ROUNDS - 1 do
    local position = (first + turn * step) % BITS
    local character = byte(bucket, floor(position / 6) + 1) - ZERO
    if band(rshift(character, position % 6), 1) == 0 then
      return false
    end
  end
  return true
end

return admission_digest
