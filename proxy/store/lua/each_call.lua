-- End of a script of many steps: `step` is what the calls in ARGV are of. One that fails is the others' concern as
-- little as if it had come alone. What `at_end` does may still add to their answers.
if not step then return redis.error_reply('no such step') end
local answers, place = {}, 2
while place <= #ARGV do
  local count, own = tonumber(ARGV[place]), {}
  for i = 1, count do own[i] = ARGV[place + i] end
  local fine, answer = pcall(step, own)
  if not fine then answer = { err = type(answer) == 'table' and answer.err or tostring(answer) } end
  answers[#answers + 1] = answer or false
  place = place + count + 1
end
if at_end then at_end() end
return answers
