-- Returns a client's text in a form that is safe in any message.
return function(text)
  return (text:gsub('[%c"\\\128-\255]', "?"))
end
