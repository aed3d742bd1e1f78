"""What a Redis or Valkey server does for the fleet, in Lua: the rules of ``board.Board``, each call one round trip.

    {PREFIX}:1:members               ZSET   member → when it ends
    {PREFIX}:1:shares                HASH   member → its share, as JSON
    {PREFIX}:1:places:<deployment>   ZSET   place → when it ends

Times are the server's own, in whole milliseconds, so that the clocks of replicas need not agree. The braces put all keys into one
slot of a cluster. Every key expires with the last of its entries: a fleet that is gone leaves nothing. The ``1`` is the layout's
version: processes with another one do not see each other.

Every script has a mark as its first argument and returns it first, so that no answer is taken for that of another call.

``cjson`` reads what any writer may have put there. It is not used for writing numbers, of which it keeps 14 digits, nor for
whole tables, where an empty array becomes an object.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final

#: A share longer than this is not published, and nobody reads it: the server does nothing else meanwhile. Bytes.
MOST_SHARE_BYTES: Final = 2**20


@dataclass(frozen=True, slots=True)
class Script:
    """A script and the name under which a server keeps it.

    Attributes:
        source: Lua.
        sha: SHA-1 of it, in hexadecimal.
    """

    source: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        """Name it."""
        digest = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "sha", digest)


_NOW: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local slack = tonumber(ARGV[2])
local function drop_ended(key, life)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
  redis.call('ZREMRANGEBYSCORE', key, string.format('(%.0f', now + life + slack), '+inf')
end
"""

#: KEYS: members, shares, then one of places for each deployment in ``renew``.
#: ARGV: mark, slack of the clock, member, share, its life, a place's life (all ms), maxima, most of a number, of a vector, of a
#: name's bytes, of names, of a share's bytes; then for each deployment the number of its places and these.
#: Returns: mark, now in ms, 1 if the member had an entry or else 0, other members, the sum of their shares as JSON.
BEAT: Final = Script(
    _NOW
    + """
local members, shares = KEYS[1], KEYS[2]
local me, share = ARGV[3], ARGV[4]
local share_life, place_life = tonumber(ARGV[5]), tonumber(ARGV[6])
local maxima, most, most_fields = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local longest_name, most_names, most_bytes = tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12])

drop_ended(members, share_life)
local known = redis.call('ZSCORE', members, me) and 1 or 0
redis.call('ZADD', members, now + share_life, me)
redis.call('HSET', shares, me, share)
redis.call('PEXPIRE', members, share_life)
redis.call('PEXPIRE', shares, share_life)

local at = 13
for index = 3, #KEYS do
  local count = tonumber(ARGV[at])
  drop_ended(KEYS[index], place_life)
  -- In pieces: unpack is bounded by Lua's stack, which holds 8000.
  for first = at + 1, at + count, 500 do
    local entries = {}
    for position = first, math.min(first + 499, at + count) do
      entries[#entries + 1] = now + place_life
      entries[#entries + 1] = ARGV[position]
    end
    redis.call('ZADD', KEYS[index], unpack(entries))
  end
  redis.call('PEXPIRE', KEYS[index], place_life)
  at = at + 1 + count
end

local alive, others = {}, 0
for _, member in ipairs(redis.call('ZRANGE', members, 0, -1)) do
  if member ~= me then
    alive[member] = true
    others = others + 1
  end
end

-- What cjson makes of JSON's arrays has every position (null is no nil), what it makes of objects has none.
local function sound(vector)
  if type(vector) ~= 'table' or #vector > most_fields or #vector == 0 and next(vector) then return false end
  for position = 1, #vector do
    local value = vector[position]
    -- NaN fails both comparisons.
    if type(value) ~= 'number' or not (value >= 0 and value <= most) then return false end
  end
  return true
end

local sums, names = {}, 0
local function add(payload)
  if #payload > most_bytes then return end
  local decoded, vectors = pcall(cjson.decode, payload)
  if not decoded or type(vectors) ~= 'table' then return end
  for name, vector in pairs(vectors) do
    if type(name) == 'string' and #name <= longest_name and sound(vector) then
      local sum = sums[name]
      if sum then
        for position = 1, #vector do
          local value, so_far = vector[position], sum[position] or 0
          if position > maxima then
            value = so_far + value
            if value > most then value = most end
          elseif value < so_far then
            value = so_far
          end
          sum[position] = value
        end
      elseif names < most_names then
        sums[name] = vector
        names = names + 1
      end
    end
  end
end

local published = redis.call('HGETALL', shares)
for index = 1, #published, 2 do
  local member = published[index]
  if alive[member] then
    add(published[index + 1])
  elseif member ~= me then
    redis.call('HDEL', shares, member)
  end
end

local parts = {}
for name, sum in pairs(sums) do
  local numbers = {}
  for position = 1, #sum do numbers[position] = string.format('%.17g', sum[position]) end
  parts[#parts + 1] = cjson.encode(name) .. ':[' .. table.concat(numbers, ',') .. ']'
end
return {ARGV[1], now, known, others, '{' .. table.concat(parts, ',') .. '}'}
"""
)

#: KEYS: members, then places of each deployment, once. ARGV: mark, slack of the clock, a place's life (both ms), member, then
#: three for each place: which key, limit, place.
#: Returns: mark, 1 if the member has an entry or else 0, and then no place is granted; 1 (granted) or 0 for each place.
ACQUIRE: Final = Script(
    _NOW
    + """
local life = tonumber(ARGV[3])
local ends = redis.call('ZSCORE', KEYS[1], ARGV[4])
local known = ends and tonumber(ends) > now
for index = 2, #KEYS do drop_ended(KEYS[index], life) end
local answer = {ARGV[1], known and 1 or 0}
for at = 5, #ARGV, 3 do
  local key, limit, place = KEYS[tonumber(ARGV[at])], tonumber(ARGV[at + 1]), ARGV[at + 2]
  local granted = 0
  if known and (redis.call('ZCARD', key) < limit or redis.call('ZSCORE', key, place)) then
    granted = 1
    redis.call('ZADD', key, now + life, place)
    redis.call('PEXPIRE', key, life)
  end
  answer[#answer + 1] = granted
end
return answer
"""
)

#: KEYS: places of each deployment. ARGV: mark, then for each deployment the number of places and these. Returns: mark.
RELEASE: Final = Script(
    """
local at = 2
for _, key in ipairs(KEYS) do
  local count = tonumber(ARGV[at])
  for first = at + 1, at + count, 500 do
    redis.call('ZREM', key, unpack(ARGV, first, math.min(first + 499, at + count)))
  end
  at = at + 1 + count
end
return {ARGV[1]}
"""
)

#: KEYS: members, shares. ARGV: mark, member. Returns: mark.
LEAVE: Final = Script(
    """
redis.call('ZREM', KEYS[1], ARGV[2])
redis.call('HDEL', KEYS[2], ARGV[2])
return {ARGV[1]}
"""
)
