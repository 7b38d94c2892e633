-- Distinguishes media inside a request from references to media elsewhere, such as an address or the name of a file.
--
-- llama.cpp fetches a text that begins with http, opens one that begins with file://, and decodes any other text as base64 as far as it
-- can. So a text passes only if it is a data: URL, or if it is base64 both by its characters and by the first bytes of known media:
-- /etc/passwd and https are valid base64 too.

local json_text = require("json_text")
local find, sub = string.find, string.sub

local media = {}

-- Number of bytes of a text that are examined: more than a file name may have.
local LOOKED_AT = 4096
-- First characters, in base64, of files that llama.cpp decodes: JPEG, PNG, GIF, BMP, PSD, HDR, PNM, RIFF (WAVE, WebP), FLAC, Ogg, MP3 with
-- a tag, Matroska, MP4.
local BEGINNINGS = {
  "^/9j/", "^iVBORw0KGgo", "^R0lGOD[dl]h", "^Qk[0-3]", "^OEJQU", "^Iz9", "^UD[UY]", "^UklGR", "^ZkxhQ", "^T2dnU", "^SUQz", "^GkXfo", "^AAAA..Z0eX",
}
-- An MP3 frame without a tag may begin like a path, so it must be long.
local FRAME, MIN_FRAME = "^/[/+][I-Po-v]", 64

local function refused()
  error({
    code = "remote_media",
    message = "is not media that is sent along: send a data: URL, or the base64 of a file. Nothing is fetched from an address or a path.",
  }, 0)
end

-- Ends the scan if the text between `first` and `last` of the body is not media. `reads`: "media", or "base64" if llama.cpp takes nothing
-- else.
function media.check(text, first, last, reads)
  local until_here = math.min(last, first + LOOKED_AT - 1)
  local start = json_text.unescaped(sub(text, first, until_here))
  if reads == "media" and find(start, "^data:") then
    return
  end
  -- Of the characters of base64, clients escape only the slash: the examined part may contain nothing else, and only padding at its end.
  local strange = find(start, "[^%w+/\\]")
  if strange and (until_here < last or not find(start, "^==?$", strange)) then
    return refused()
  end
  for _, beginning in ipairs(BEGINNINGS) do
    if find(start, beginning) then
      return
    end
  end
  if #start < MIN_FRAME or not find(start, FRAME) then
    return refused()
  end
end

return media
